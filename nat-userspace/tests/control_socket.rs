//! Server, client and commands over a real unix socket, with a gateway that is made up.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    ops::ControlFlow,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use nat_userspace::{
    api::{
        Control, ControlError, Counters,
        instance::{Instance, InstanceError, socket_path, view_socket_path},
        model::{
            AddressState, AddressStatus, AttachedMode, EipChange, Flow, FlowFilter, ForwardChange,
            GatewayState, InterfaceState, InterfaceStatus, PortsInUse, Reloaded, SessionState,
            Status,
        },
        server,
        trace::{Trace, TraceQuery},
    },
    config::{Forward, Protocol, Role},
};
use nix::unistd::Gid;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// So many TCP sessions, with two private hosts taking turns.
#[derive(Default)]
struct Fake {
    sessions: u32,
    visited: AtomicU32,
    changes: Mutex<Vec<String>>,
}

impl Fake {
    fn flow(number: u32) -> Flow {
        let port = u16::try_from(1024 + number % 60_000).expect("a port");
        let host = Ipv4Addr::new(10, 0, 0, if number.is_multiple_of(2) { 5 } else { 6 });
        Flow {
            protocol: Protocol::Tcp,
            private: SocketAddrV4::new(host, port),
            public: SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), port),
            remote: SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 443),
            state: SessionState::Established,
            age_s: 10,
            idle_s: 1,
            packets_out: 2,
            packets_in: 3,
            bytes_out: 120,
            bytes_in: 180,
        }
    }

    fn note(&self, change: String) {
        self.changes.lock().expect("not poisoned").push(change);
    }
}

impl Control for Fake {
    fn status(&self) -> Result<Status, ControlError> {
        Ok(Status {
            name: "edge".to_owned(),
            profile: "aws".to_owned(),
            state: GatewayState::Ready,
            uptime_s: 3700,
            sessions: u64::from(self.sessions),
            sessions_max: 1_048_576,
            interfaces: vec![InterfaceStatus {
                name: "eth0".to_owned(),
                role: Role::Both,
                xdp_mode: AttachedMode::Native,
                state: InterfaceState::Attached,
                note: None,
            }],
            addresses: self.eip_list()?,
            notices: Vec::new(),
        })
    }

    fn counters(&self) -> Result<Counters, ControlError> {
        let mut counters = Counters { packets_drop_count: 4, ..Counters::default() };
        counters.drops.insert("unsolicited".to_owned(), 4);
        Ok(counters)
    }

    fn flows(&self, visit: &mut dyn FnMut(&Flow) -> ControlFlow<()>) -> Result<(), ControlError> {
        for number in 0..self.sessions {
            self.visited.fetch_add(1, Ordering::Relaxed);
            if visit(&Self::flow(number)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self, filter: &FlowFilter) -> Result<u64, ControlError> {
        self.note(format!("flush {}", filter.query()));
        Ok(7)
    }

    fn trace(&self, query: &TraceQuery) -> Result<Trace, ControlError> {
        self.note(format!("trace {}", query.query()));
        Err(ControlError::NotFound("lan9 is no interface of this gateway".to_owned()))
    }

    fn eip_list(&self) -> Result<Vec<AddressStatus>, ControlError> {
        Ok(vec![AddressStatus {
            address: Ipv4Addr::new(198, 51, 100, 10),
            pool: "default".to_owned(),
            state: AddressState::Active,
            sessions: 3,
            ports_in_use: PortsInUse { tcp: 2, udp: 1, icmp: 0 },
            note: None,
        }])
    }

    fn eip_add(&self, change: &EipChange) -> Result<(), ControlError> {
        self.note(format!("add {} save {}", change.address, change.save));
        Ok(())
    }

    fn eip_drain(&self, change: &EipChange) -> Result<(), ControlError> {
        self.note(format!("drain {} {:?}", change.address, change.max_wait_s));
        Ok(())
    }

    fn eip_remove(&self, change: &EipChange) -> Result<(), ControlError> {
        Err(ControlError::NotFound(format!("no pool has {}; see natgw eip list", change.address)))
    }

    fn forward_list(&self) -> Result<Vec<Forward>, ControlError> {
        Ok(vec![Forward {
            protocol: Protocol::Tcp,
            public: "198.51.100.10:443".parse().expect("endpoints"),
            private: "10.0.1.5:8443".parse().expect("endpoints"),
        }])
    }

    fn forward_add(&self, change: &ForwardChange) -> Result<(), ControlError> {
        self.note(format!("forward {} to {}", change.forward.public, change.forward.private));
        Ok(())
    }

    fn forward_remove(&self, _: &ForwardChange) -> Result<(), ControlError> {
        panic!("a fault of the gateway's own")
    }

    fn reload(&self, dry_run: bool) -> Result<Reloaded, ControlError> {
        if dry_run {
            let steps = vec!["add address 198.51.100.11".to_owned()];
            return Ok(Reloaded { dry_run, steps, sessions_ended: 2 });
        }
        Err(ControlError::WrongConfig("n.toml:1:1: one\nn.toml:2:1: two".to_owned()))
    }

    fn confirm(&self) -> Result<(), ControlError> {
        Err(ControlError::Refused("nothing waits for a confirmation; none is needed".to_owned()))
    }
}

/// A server in a thread of its own, for as long as the test has this.
struct Gateway {
    directory: tempfile::TempDir,
    fake: Arc<Fake>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Gateway {
    fn start(sessions: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let fake = Arc::new(Fake { sessions, ..Fake::default() });
        let socket = Instance::claim(directory.path(), "edge")
            .and_then(|instance| instance.listen_for(Some(Gid::current())))
            .expect("the name and its socket");
        let (stop, stopped) = oneshot::channel::<()>();
        let control: Arc<dyn Control> = Arc::clone(&fake) as _;
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let stopped = async move { stopped.await.unwrap_or_default() };
            runtime.block_on(server::serve(socket, control, stopped)).expect("served");
        });
        Self { directory, fake, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn natgw(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_natgw"))
            .args(arguments)
            .args(["--name", "edge", "--state-dir"])
            .arg(self.path())
            .output()
            .expect("natgw runs")
    }

    /// What the command says; it must succeed and say nothing on stderr.
    #[track_caller]
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.natgw(arguments);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.says(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn status_and_eip_list_are_the_contracts_json_and_a_table() {
    let gateway = Gateway::start(3);
    let addresses = json!([{
        "address": "198.51.100.10", "pool": "default", "state": "active", "sessions": 3,
        "ports_in_use": {"tcp": 2, "udp": 1, "icmp": 0},
    }]);
    assert_eq!(
        gateway.json(&["status"]),
        json!({
            "name": "edge", "profile": "aws", "state": "ready", "uptime_s": 3700, "sessions": 3,
            "sessions_max": 1_048_576, "addresses": addresses, "notices": [],
            "interfaces": [
                {"name": "eth0", "role": "both", "xdp_mode": "native", "state": "attached"}
            ],
        })
    );
    assert_eq!(gateway.json(&["eip", "list"]), addresses);
    assert_eq!(gateway.json(&["eip", "list", "--pool", "other"]), json!([]));
    let table = gateway.says(&["status"]);
    assert!(
        table.starts_with("gateway edge: ready, up 1h 1m, profile aws, 3 of 1048576 sessions\n")
    );
    assert!(table.contains("\n198.51.100.10"), "{table}");
}

#[test]
fn counters_are_one_object_and_the_table_names_the_drops() {
    let gateway = Gateway::start(0);
    let counters = gateway.json(&["counters"]);
    assert_eq!(counters["packets_drop_count"], 4);
    assert_eq!(counters["drops"], json!({"unsolicited": 4}));
    assert!(gateway.says(&["counters"]).contains("dropped: unsolicited"));
}

#[test]
fn flows_arrive_whole_in_json_and_table_however_many_they_are() {
    let gateway = Gateway::start(20_001);
    let flows = gateway.json(&["flows"]);
    let flows = flows.as_array().expect("an array");
    assert_eq!(flows.len(), 20_001);
    assert_eq!(flows[20_000], serde_json::to_value(Fake::flow(20_000)).expect("JSON"));
    let table = gateway.says(&["flows"]);
    assert_eq!(table.lines().count(), 20_002);
    assert!(table.lines().all(|line| line.starts_with("PROTO") || line.starts_with("tcp ")));
}

#[test]
fn no_flows_are_an_empty_array() {
    let gateway = Gateway::start(0);
    assert_eq!(gateway.json(&["flows"]), json!([]));
    assert_eq!(gateway.json(&["flows", "count"]), json!({"count": 0}));
    assert_eq!(gateway.json(&["flows", "--limit", "0"]), json!([]));
}

#[test]
fn filters_and_limits_hold_for_list_count_and_flush() {
    let gateway = Gateway::start(11);
    let count = |arguments: &[&str]| gateway.json(&[&["flows", "count"], arguments].concat());
    assert_eq!(count(&[]), json!({"count": 11}));
    assert_eq!(count(&["--private", "10.0.0.5"]), json!({"count": 6}));
    assert_eq!(count(&["--private", "10.0.0.6:1025"]), json!({"count": 1}));
    assert_eq!(count(&["--protocol", "udp"]), json!({"count": 0}));
    assert_eq!(count(&["--remote", "203.0.113.1:443", "--limit", "4"]), json!({"count": 4}));
    let listed = gateway.json(&["flows", "--private", "10.0.0.6", "--limit", "2"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    let flushed = gateway.json(&["flows", "flush", "--private", "10.0.0.6", "--protocol", "tcp"]);
    assert_eq!(flushed, json!({"flushed": 7}));
    let changes = gateway.fake.changes.lock().expect("not poisoned");
    assert_eq!(*changes, ["flush private=10.0.0.6&protocol=tcp"]);
}

#[test]
fn the_walk_over_the_sessions_stops_at_the_limit() {
    let gateway = Gateway::start(1000);
    gateway.json(&["flows", "--limit", "5"]);
    assert_eq!(gateway.fake.visited.load(Ordering::Relaxed), 5);
}

#[test]
fn changes_arrive_with_all_that_was_written() {
    let gateway = Gateway::start(0);
    assert_eq!(gateway.says(&["eip", "add", "198.51.100.11", "--save"]), "198.51.100.11 added\n");
    assert!(gateway.json(&["eip", "drain", "198.51.100.10", "--max-wait", "2s"]).is_array());
    let forward =
        ["--protocol", "tcp", "--public", "198.51.100.10:80", "--private", "10.0.0.5:8080"];
    gateway.says(&[&["forward", "add"], &forward[..]].concat());
    assert_eq!(
        *gateway.fake.changes.lock().expect("not poisoned"),
        [
            "add 198.51.100.11 save true",
            "drain 198.51.100.10 Some(2)",
            "forward 198.51.100.10:80 to 10.0.0.5:8080",
        ]
    );
    assert_eq!(
        gateway.json(&["forward", "list"]),
        json!([{"protocol": "tcp", "public": "198.51.100.10:443", "private": "10.0.1.5:8443"}])
    );
    assert!(gateway.says(&["reload", "--dry-run"]).contains("add address 198.51.100.11"));
}

#[test]
fn what_the_gateway_refuses_is_one_line_on_stderr_and_exit_1() {
    let gateway = Gateway::start(0);
    for (arguments, line) in [
        (
            &["eip", "remove", "203.0.113.7"][..],
            "natgw: no pool has 203.0.113.7; see natgw eip list\n",
        ),
        (&["confirm"], "natgw: nothing waits for a confirmation; none is needed\n"),
        (
            &[
                "forward",
                "remove",
                "--protocol",
                "tcp",
                "--public",
                "198.51.100.10:1",
                "--private",
                "10.0.0.5:1",
            ],
            "natgw: the gateway failed at this request; its log says where\n",
        ),
    ] {
        let output = gateway.natgw(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&output.stderr), line);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_reload_of_a_wrong_file_exits_2_with_every_fault() {
    let gateway = Gateway::start(0);
    let output = gateway.natgw(&["reload"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "n.toml:1:1: one\nn.toml:2:1: two\n");
}

#[test]
fn the_socket_has_mode_0660_and_is_gone_after_the_end() {
    let mut gateway = Gateway::start(0);
    let socket = socket_path(gateway.path(), "edge");
    let mode = fs::metadata(&socket).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    gateway.stop();
    assert!(!socket.exists());
}

#[test]
fn the_socket_of_viewers_answers_what_looks_and_refuses_what_changes() {
    let mut gateway = Gateway::start(3);
    let view = view_socket_path(gateway.path(), "edge");
    let mode = fs::metadata(&view).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    // Where the command line looks for the socket of the others.
    let elsewhere = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::symlink(&view, socket_path(elsewhere.path(), "edge")).expect("a link");
    let natgw = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_natgw"))
            .args(arguments)
            .args(["--name", "edge", "--state-dir"])
            .arg(elsewhere.path())
            .output()
            .expect("natgw runs")
    };
    for looks in [&["status"][..], &["counters"], &["flows"], &["flows", "count"], &["eip", "list"]]
    {
        assert!(natgw(looks).status.success(), "{looks:?}");
    }
    let address = "198.51.100.11";
    for changes in [
        &["eip", "add", address][..],
        &["eip", "drain", address],
        &["eip", "remove", address],
        &["flows", "flush"],
        &["reload"],
        &["reload", "--dry-run"],
        &["confirm"],
    ] {
        let output = natgw(changes);
        assert_eq!(output.status.code(), Some(1), "{changes:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("only for those who may change"), "{said}");
    }
    assert!(gateway.fake.changes.lock().expect("the list").is_empty(), "nothing was changed");
    gateway.stop();
    assert!(!view.exists());
}

#[test]
fn a_second_gateway_of_the_name_is_refused_and_another_name_is_not() {
    let gateway = Gateway::start(0);
    let error = Instance::claim(gateway.path(), "edge").expect_err("refused");
    assert!(matches!(&error, InstanceError::Running { name, .. } if name == "edge"));
    assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
    Instance::claim(gateway.path(), "other").expect("another name");
}

#[test]
fn the_socket_of_a_dead_gateway_is_replaced_and_another_file_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = socket_path(directory.path(), "edge");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
    assert!(socket.exists());
    drop(Instance::claim(directory.path(), "edge").and_then(Instance::listen).expect("replaced"));
    fs::write(&socket, "precious").expect("written");
    let error = Instance::claim(directory.path(), "edge")
        .and_then(Instance::listen)
        .expect_err("not replaced");
    assert!(matches!(error, InstanceError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(&socket).expect("still there"), "precious");
}
