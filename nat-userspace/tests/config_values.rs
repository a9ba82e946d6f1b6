//! What a right configuration becomes.

use std::time::Duration;

use nat_userspace::config::{
    self, AddressSource, Config, Filtering, Flags, HostInterface, HostView, Mapping, MssClamp,
    Overrides, PortRange, Profile, Protocol, Role, Timeouts, XdpMode,
};

fn host() -> HostView {
    let interface = |name: &str, addresses: &[&str]| HostInterface {
        name: name.to_owned(),
        ethernet: true,
        addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
    };
    HostView {
        interfaces: vec![interface("eth0", &["192.0.2.10", "192.0.2.11"]), interface("eth1", &[])],
        listeners: Vec::new(),
        local_ports: Some(range(32768, 60999)),
    }
}

fn range(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

fn read(text: &str) -> Config {
    match config::parse_text(text, "t.toml", &Overrides::default(), &host()) {
        Ok(config) => config,
        Err(faults) => panic!("{faults}"),
    }
}

const GATEWAY: &str = "[gateway]\npublic = [\"eth0\"]\nprivate = [\"eth1\"]\n";

/// The contract's own example, with interfaces that are there.
const EXAMPLE: &str = r#"
[gateway]
name     = "default"
profile  = "aws"
public   = ["eth0"]
private  = ["eth1"]
xdp_mode = "auto"
sessions = 1_048_576
hairpin  = true
idle_reset = true
mss_clamp = "auto"
state_dir = "/run/natgw"
bpf_dir = "/sys/fs/bpf/natgw"

[[pool]]
name      = "default"
addresses = ["198.51.100.10", "198.51.100.16/30"]
interface = "eth0"
ports     = "1024-65535"
mapping   = "address-and-port-dependent"
filtering = "address-and-port-dependent"
overload  = true
sessions_per_host = 0
new_sessions_per_second_per_host = 0

[[snat]]
source = ["10.0.0.0/16"]
pool   = "default"
exempt = ["10.0.0.0/8"]

[[forward]]
protocol = "tcp"
public   = "198.51.100.10:443"
private  = "10.0.1.5:8443"

[[one_to_one]]
public  = "198.51.100.20"
private = "10.0.1.9"

[timeouts]
tcp_established = "350s"
tcp_transitory  = "60s"
udp             = "350s"
icmp            = "60s"
port_hold       = "0s"

[metrics]
listen = "127.0.0.1:9464"
"#;

#[test]
fn the_contracts_example_is_understood_whole() {
    let config = read(EXAMPLE);
    assert!(config.gateway.hairpin);
    let addresses: Vec<String> =
        config.pools[0].addresses.iter().map(|entry| entry.address.to_string()).collect();
    assert_eq!(
        addresses,
        ["198.51.100.10", "198.51.100.16", "198.51.100.17", "198.51.100.18", "198.51.100.19"]
    );
    assert_eq!(config.pools[0].interface.as_deref(), Some("eth0"));
    assert_eq!(config.snat[0].exempt[0].to_string(), "10.0.0.0/8");
    assert_eq!(config.forwards[0].private.to_string(), "10.0.1.5:8443");
    assert_eq!(config.one_to_one[0].private.to_string(), "10.0.1.9");
    assert_eq!(config.metrics.listen.map(|listen| listen.port()), Some(9464));
    assert_eq!(config::notices(&config, &host()), Vec::<String>::new());
}

#[test]
fn what_a_file_leaves_out_is_the_profiles() {
    let text = |profile: &str| {
        read(&format!(
            "{GATEWAY}{profile}\n[[pool]]\naddresses = [\"198.51.100.10\"]\n[[snat]]\nsource = [\"10.0.0.0/8\"]\n"
        ))
    };
    let seconds = Duration::from_secs;
    let aws = text("");
    assert_eq!(aws.gateway.profile, Profile::Aws);
    assert_eq!((aws.gateway.hairpin, aws.gateway.idle_reset), (false, true));
    assert_eq!(aws.gateway.name, "default");
    assert_eq!(aws.gateway.sessions, 1_048_576);
    assert_eq!(aws.gateway.xdp_mode, XdpMode::Auto);
    assert_eq!(aws.gateway.mss_clamp, MssClamp::Auto);
    assert_eq!(aws.gateway.state_dir.to_str(), Some("/run/natgw"));
    assert_eq!(aws.gateway.bpf_dir.to_str(), Some("/sys/fs/bpf/natgw"));
    assert_eq!(aws.pools[0].name, "default");
    assert_eq!(aws.snat[0].pool, "default");
    assert_eq!(aws.pools[0].mapping, Mapping::AddressAndPortDependent);
    assert_eq!(aws.pools[0].filtering, Filtering::AddressAndPortDependent);
    assert_eq!(aws.metrics.listen, None);
    assert_eq!(
        aws.timeouts,
        Timeouts {
            tcp_established: seconds(350),
            tcp_transitory: seconds(60),
            udp: seconds(350),
            icmp: seconds(60),
            port_hold: seconds(0),
        }
    );
    let rfc = text("profile = \"rfc\"");
    assert_eq!((rfc.gateway.hairpin, rfc.gateway.idle_reset), (true, false));
    assert_eq!(rfc.pools[0].mapping, Mapping::EndpointIndependent);
    assert_eq!(rfc.pools[0].filtering, Filtering::AddressDependent);
    assert_eq!(
        rfc.timeouts,
        Timeouts {
            tcp_established: seconds(7440),
            tcp_transitory: seconds(240),
            udp: seconds(300),
            icmp: seconds(60),
            port_hold: seconds(120),
        }
    );
}

#[test]
fn what_a_file_says_wins_over_the_profile() {
    let config = read(&format!(
        "{GATEWAY}profile = \"rfc\"\nhairpin = false\nmss_clamp = 1360\nsessions = 0x100\n\
         [[pool]]\naddresses = [\"198.51.100.10\"]\nmapping = \"address-and-port-dependent\"\n\
         overload = false\nsessions_per_host = 5\n\
         [timeouts]\nudp = \"2m\"\n"
    ));
    assert!(!config.gateway.hairpin);
    assert_eq!(config.gateway.mss_clamp, MssClamp::To(1360));
    assert_eq!(config.gateway.sessions, 256);
    assert_eq!(config.pools[0].mapping, Mapping::AddressAndPortDependent);
    assert_eq!((config.pools[0].overload, config.pools[0].sessions_per_host), (false, 5));
    assert_eq!(config.timeouts.udp, Duration::from_secs(120));
}

#[test]
fn an_address_of_the_host_leaves_it_its_local_ports_and_check_says_so() {
    let config = read(&format!(
        "{GATEWAY}[[pool]]\naddresses = [\"eth0\", \"198.51.100.10\"]\n[[snat]]\nsource = [\"10.0.0.0/8\"]\n"
    ));
    let [own, other] = config.pools[0].addresses.as_slice() else { panic!("two addresses") };
    assert_eq!(own.address.to_string(), "192.0.2.10");
    assert_eq!(own.source, AddressSource::Interface("eth0".to_owned()));
    assert!(own.host_owned && !other.host_owned);
    assert_eq!(own.ports, [range(1024, 32767), range(61000, 65535)]);
    assert_eq!(other.ports, [range(1024, 65535)]);
    let notices = config::notices(&config, &host());
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains("192.0.2.10"), "{notices:?}");
    assert!(notices[0].contains("32768-60999"), "{notices:?}");
}

#[test]
fn ports_that_are_written_down_are_the_gateways_even_on_the_hosts_address() {
    let config = read(&format!(
        "{GATEWAY}[[pool]]\naddresses = [\"192.0.2.10\"]\nports = \"40000-40063\"\n\
         [[snat]]\nsource = [\"10.0.0.0/8\"]\n"
    ));
    assert!(config.pools[0].ports_explicit);
    assert_eq!(config.pools[0].addresses[0].ports, [range(40000, 40063)]);
    let notices = config::notices(&config, &host());
    assert!(notices[0].contains("shares ports 32768-60999"), "{notices:?}");
}

#[test]
fn the_ports_of_forwards_are_no_session_ports_of_their_protocol() {
    let config = read(&format!(
        "{GATEWAY}[[pool]]\naddresses = [\"198.51.100.10\"]\n\
         [[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.10:8000-8010\"\nprivate = \"10.0.0.5:9000-9010\"\n"
    ));
    let address = "198.51.100.10".parse().expect("address");
    let tcp = config.session_ports(address, Protocol::Tcp);
    assert_eq!(tcp, [range(1024, 7999), range(8011, 65535)]);
    assert_eq!(config.session_ports(address, Protocol::Udp), [range(1024, 65535)]);
}

#[test]
fn an_interface_in_both_lists_has_both_roles() {
    let config = read(
        "[gateway]\npublic = [\"eth0\"]\nprivate = [\"eth1\", \"eth0\"]\n[[pool]]\naddresses = [\"eth0\"]\n",
    );
    assert_eq!(config.interfaces(), [("eth0", Role::Both), ("eth1", Role::Private)]);
}

#[test]
fn a_pool_address_inside_an_snat_source_is_allowed() {
    let config = read(&format!(
        "{GATEWAY}[[pool]]\naddresses = [\"192.0.2.10\"]\n[[snat]]\nsource = [\"192.0.2.0/24\"]\n"
    ));
    assert_eq!(config.snat[0].source[0].to_string(), "192.0.2.0/24");
}

#[test]
fn flags_make_the_configuration_that_a_file_would() {
    let flags = Flags {
        public: vec!["eth0".to_owned()],
        private: vec!["eth1".to_owned()],
        eip: vec!["198.51.100.10".to_owned()],
        source: vec!["10.0.0.0/16".to_owned()],
    };
    let overrides = Overrides {
        name: Some("edge".to_owned()),
        state_dir: Some("/tmp/edge".into()),
        xdp_mode: Some(XdpMode::Native),
    };
    let from_flags = config::from_flags(&flags, &overrides, &host()).expect("right flags");
    let from_file = read(&format!(
        "{GATEWAY}name = \"edge\"\nstate_dir = \"/tmp/edge\"\nxdp_mode = \"native\"\n\
         [[pool]]\naddresses = [\"198.51.100.10\"]\n[[snat]]\nsource = [\"10.0.0.0/16\"]\n"
    ));
    assert_eq!(from_flags, from_file);
}

#[test]
fn what_can_never_take_effect_is_noticed() {
    let config = read(&format!(
        "{GATEWAY}[[pool]]\nname = \"idle\"\naddresses = [\"198.51.100.10\"]\nfiltering = \"endpoint-independent\"\n\
         [[pool]]\nname = \"used\"\naddresses = [\"198.51.100.11\"]\n\
         [[snat]]\nsource = [\"10.0.0.0/8\"]\npool = \"used\"\n\
         [[snat]]\nsource = [\"10.1.0.0/16\"]\npool = \"used\"\n"
    ));
    let notices = config::notices(&config, &host()).join("\n");
    for words in [
        "pool \"idle\": filtering \"endpoint-independent\" admits nobody new",
        "pool \"idle\" is used by no",
        "snat source 10.1.0.0/16 never matches: 10.0.0.0/8",
    ] {
        assert!(notices.contains(words), "{words} is not in\n{notices}");
    }
}
