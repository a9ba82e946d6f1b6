//! A network in namespaces: clients, a gateway, a router and a server, on veth pairs.
//!
//! ```text
//! two-armed   client1 10.0.1.5/24 ─┐
//!             client2 10.0.1.6/24 ─┴ lan (bridge) ─ lan0 10.0.1.1/24 [gateway] wan0 198.51.100.2/24
//!             ─ pub0 198.51.100.1/24 [router] srv0 203.0.113.1/24 ─ eth0 203.0.113.10/24 [server]
//!
//! one-armed   client1, client2, [gateway] eth0 10.0.1.1/24 and [router] lan0 10.0.1.254/24 on one
//!             bridge; behind the router the same server
//! ```
//!
//! Clients have their default route through the gateway, the gateway through the router, and the
//! router none: what leaves untranslated reaches the server and finds no way back. Pool addresses
//! ([`Lab::eip`] and its neighbours) are on-link for the router and owned by nobody.
//!
//! Every lab has names of its own, so labs run side by side; dropping one removes it whole, also
//! when a test panics. What a killed test run left behind is removed by the next lab.
//!
//! ```no_run
//! use std::time::Duration;
//! use xtask::lab::{Lab, LabOptions, SERVER, Sniffer, client_address, http};
//!
//! fn a_download_arrives_and_its_private_address_stays_inside() {
//!     let lab = Lab::two_armed(LabOptions::default()).unwrap();
//!     let _web = http::HttpServer::start(lab.server(), 80).unwrap();
//!     let (router, interface) = lab.outside();
//!     let outside = Sniffer::start(router, interface).unwrap();
//!     let mut gateway = lab.start_natgw(&lab.config()).unwrap();
//!
//!     let seen = lab.client(1).check(["curl", "-sS", &format!("http://{SERVER}/")]).unwrap();
//!     assert!(seen.starts_with(&format!("{}:", lab.eip())), "{seen}");
//!     let flows = gateway.json(&["flows", "--protocol", "tcp"]).unwrap();
//!     assert_eq!(flows.as_array().unwrap().len(), 1);
//!     assert_eq!(gateway.counter("packets_drop_count").unwrap(), 0);
//!
//!     outside.settle(Duration::from_millis(200)).unwrap();
//!     for frame in outside.stop().unwrap() {
//!         assert!(!frame.mentions(client_address(1)), "{frame:02x?}");
//!     }
//!     assert!(gateway.sigterm().unwrap().success());
//!     gateway.detach().unwrap();
//! }
//! ```

mod cleanup;
pub mod dns;
mod frame;
mod gateway;
pub mod http;
mod namespace;
mod packet_socket;
mod process;
mod sniffer;
mod topology;
mod user;
mod xdp_program;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, process as std_process};

use anyhow::{Context, Result, bail};

pub use self::frame::Frame;
pub use self::gateway::{Gateway, natgw_binary};
pub use self::namespace::{Interface, Namespace};
pub use self::packet_socket::send_frames;
pub use self::process::{Output, Process};
pub use self::sniffer::Sniffer;
pub use self::topology::{
    GATEWAY_PRIVATE, GATEWAY_PUBLIC, LabOptions, ROUTER_ONE_ARMED, ROUTER_PUBLIC, SERVER, SERVER_2,
    client_address,
};
pub use self::user::User;
pub use self::xdp_program::{XdpAction, XdpProgram};

/// Parent of the directories with configurations, logs and control sockets.
const LABS_DIR: &str = "/run/natgw-lab";

/// How the gateway is wired.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arms {
    /// `lan0` towards the clients, `wan0` towards the router.
    Two,
    /// `eth0` for both.
    One,
}

/// A running lab; see the module's documentation.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    arms: Arms,
    dir: PathBuf,
    options: LabOptions,
    namespaces: Vec<Namespace>,
    peer_programs: Vec<XdpProgram>,
    user: Option<User>,
    kept: bool,
}

impl Lab {
    /// Private and public interface apart.
    pub fn two_armed(options: LabOptions) -> Result<Self> {
        Self::build(Arms::Two, options)
    }

    /// One interface for both sides, on one LAN with clients and router.
    pub fn one_armed(options: LabOptions) -> Result<Self> {
        Self::build(Arms::One, options)
    }

    fn build(arms: Arms, options: LabOptions) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        cleanup::remove_orphans();
        let prefix = options.prefix.clone().unwrap_or_else(|| {
            cleanup::test_prefix(std_process::id(), SERIAL.fetch_add(1, Ordering::Relaxed))
        });
        let dir = Path::new(LABS_DIR).join(&prefix);
        if dir.exists() {
            bail!("a lab {prefix} exists already; `cargo xtask run --remove` removes a kept one");
        }
        fs::create_dir_all(&dir).with_context(|| {
            format!("cannot create {}; labs need root: run this as root", dir.display())
        })?;
        cleanup::mount_bpffs()?;
        // From here on dropping `lab` removes what a failing step leaves.
        let mut lab = Self {
            prefix,
            arms,
            dir,
            options,
            namespaces: Vec::new(),
            peer_programs: Vec::new(),
            user: User::of_environment()?,
            kept: false,
        };
        match arms {
            Arms::Two => lab.wire_two_armed(),
            Arms::One => lab.wire_one_armed(),
        }
        .with_context(|| format!("cannot build the lab {}", lab.prefix))?;
        Ok(lab)
    }

    /// The namespace that plays `role`: `client1`, `client2`, …, `gateway`, `router`, `server`,
    /// `lan` (the bridge). Panics if there is none.
    pub fn ns(&self, role: &str) -> &Namespace {
        let found = self.namespaces.iter().find(|namespace| namespace.role() == role);
        found.unwrap_or_else(|| {
            let roles: Vec<_> = self.namespaces.iter().map(Namespace::role).collect();
            panic!("the lab has no namespace {role:?}, only {}", roles.join(", "))
        })
    }

    /// Client `number`, counted from 1.
    pub fn client(&self, number: u8) -> &Namespace {
        self.ns(&format!("client{number}"))
    }

    pub fn gateway(&self) -> &Namespace {
        self.ns("gateway")
    }

    pub fn router(&self) -> &Namespace {
        self.ns("router")
    }

    pub fn server(&self) -> &Namespace {
        self.ns("server")
    }

    /// Every namespace of the lab.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    pub fn arms(&self) -> Arms {
        self.arms
    }

    /// The gateway's interface towards the clients.
    pub fn private_interface(&self) -> &'static str {
        match self.arms {
            Arms::Two => "lan0",
            Arms::One => "eth0",
        }
    }

    /// The gateway's interface towards the router.
    pub fn public_interface(&self) -> &'static str {
        match self.arms {
            Arms::Two => "wan0",
            Arms::One => "eth0",
        }
    }

    /// Where to sniff what leaves towards the internet: the router's interface that faces the
    /// gateway. In a one-armed lab everything on it came over the shared LAN.
    pub fn outside(&self) -> (&Namespace, &'static str) {
        match self.arms {
            Arms::Two => (self.router(), "pub0"),
            Arms::One => (self.router(), "lan0"),
        }
    }

    /// The name that natgw runs under here (`--name`), unique on the machine.
    pub fn name(&self) -> &str {
        &self.prefix
    }

    /// A directory of this lab for files of a test; goes with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives `path`, and what is in it, to the user that the gateways run as, as the service's unit does
    /// with what root has left; nothing where that is root.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn give_to_gateways(&self, path: &Path) -> Result<()> {
        let Some(user) = self.user else { return Ok(()) };
        user.own(path).with_context(|| format!("cannot give away {}", path.display()))
    }

    /// Gateways started from now on run as `user`, with the capabilities of the service.
    pub fn run_as(&mut self, user: User) {
        self.user = Some(user);
    }

    /// Leaves namespaces and processes running; returns the prefix of their names.
    pub fn keep(mut self) -> String {
        self.kept = true;
        self.prefix.clone()
    }

    /// Removes the kept lab of this prefix. False if there was none.
    pub fn remove_kept(prefix: &str) -> bool {
        cleanup::remove(prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept {
            cleanup::remove(&self.prefix);
        }
    }
}
