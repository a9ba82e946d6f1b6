//! The file as written: every key of the contract with its place, types right, meaning unchecked.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Flags,
    fault::{At, Faults, Located},
    reader::{Field, Scalar, Strings, TableReader, kind, offset},
};

#[derive(Debug, Default)]
pub(super) struct RawConfig {
    pub(super) gateway: RawGateway,
    pub(super) pools: Vec<RawPool>,
    pub(super) snat: Vec<RawSnat>,
    pub(super) forwards: Vec<RawForward>,
    pub(super) one_to_one: Vec<RawOneToOne>,
    pub(super) timeouts: RawTimeouts,
    pub(super) metrics_listen: Field<String>,
    pub(super) metrics_top_hosts: Field<i64>,
    pub(super) log: RawLog,
    /// A `[[section]]` was unreadable as a whole: do not also call it missing.
    pub(super) pools_faulty: bool,
}

#[derive(Debug, Default)]
pub(super) struct RawGateway {
    pub(super) name: Field<String>,
    pub(super) profile: Field<String>,
    pub(super) public: Field<Strings>,
    pub(super) private: Field<Strings>,
    pub(super) xdp_mode: Field<String>,
    pub(super) sessions: Field<i64>,
    pub(super) hairpin: Field<bool>,
    pub(super) idle_reset: Field<bool>,
    pub(super) mss_clamp: Field<Scalar>,
    pub(super) state_dir: Field<String>,
    pub(super) bpf_dir: Field<String>,
}

#[derive(Debug, Default)]
pub(super) struct RawPool {
    pub(super) at: Option<At>,
    pub(super) name: Field<String>,
    pub(super) addresses: Field<Strings>,
    pub(super) interface: Field<String>,
    pub(super) ports: Field<String>,
    pub(super) mapping: Field<String>,
    pub(super) filtering: Field<String>,
    pub(super) overload: Field<bool>,
    pub(super) sessions_per_host: Field<i64>,
    pub(super) new_sessions_per_second_per_host: Field<i64>,
}

#[derive(Debug, Default)]
pub(super) struct RawSnat {
    pub(super) at: Option<At>,
    pub(super) source: Field<Strings>,
    pub(super) pool: Field<String>,
    pub(super) exempt: Field<Strings>,
}

#[derive(Debug, Default)]
pub(super) struct RawForward {
    pub(super) protocol: Field<String>,
    pub(super) public: Field<String>,
    pub(super) private: Field<String>,
}

#[derive(Debug, Default)]
pub(super) struct RawOneToOne {
    pub(super) public: Field<String>,
    pub(super) private: Field<String>,
}

#[derive(Debug, Default)]
pub(super) struct RawTimeouts {
    pub(super) tcp_established: Field<String>,
    pub(super) tcp_transitory: Field<String>,
    pub(super) udp: Field<String>,
    pub(super) icmp: Field<String>,
    pub(super) port_hold: Field<String>,
}

#[derive(Debug, Default)]
pub(super) struct RawLog {
    /// Nothing: there is no such section.
    pub(super) at: Option<At>,
    pub(super) file: Field<String>,
    pub(super) format: Field<String>,
    pub(super) fields: Field<String>,
    pub(super) constants: Field<Strings>,
    pub(super) opened: Field<bool>,
    pub(super) interval: Field<String>,
    pub(super) bulk: Field<String>,
    pub(super) rotate_mb: Field<i64>,
    pub(super) rotate_every: Field<String>,
    pub(super) keep: Field<i64>,
    pub(super) compress: Field<bool>,
    pub(super) ipfix: Field<String>,
    pub(super) ipfix_domain: Field<i64>,
}

const SECTIONS: [&str; 8] =
    ["gateway", "pool", "snat", "forward", "one_to_one", "timeouts", "metrics", "log"];

impl RawConfig {
    pub(super) fn from_toml(document: &DeTable<'_>, faults: &mut Faults) -> Self {
        let start = At::Offset(0);
        let reader = TableReader::new(document, start, "the file", &SECTIONS, faults);
        let [gateway_value, pools, snats, forwards, mappings, timeouts_value, metrics, log_value] =
            SECTIONS.map(|section| reader.value(section));
        let mut raw = Self::default();
        match gateway_value {
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => raw.gateway = gateway(table, offset(value), faults),
                other => not_a_table(value, "gateway", other, faults),
            },
            None => faults.add(
                start,
                "the file has no [gateway] section",
                "add [gateway] with public = [\"eth0\"] and private = [\"eth1\"]",
            ),
        }
        let pools = sections(pools, "pool", faults);
        raw.pools_faulty = pools.is_none();
        for (table, at) in pools.unwrap_or_default() {
            raw.pools.push(pool(table, at, faults));
        }
        for (table, at) in sections(snats, "snat", faults).unwrap_or_default() {
            raw.snat.push(snat(table, at, faults));
        }
        for (table, at) in sections(forwards, "forward", faults).unwrap_or_default() {
            raw.forwards.push(forward(table, at, faults));
        }
        for (table, at) in sections(mappings, "one_to_one", faults).unwrap_or_default() {
            raw.one_to_one.push(one_to_one(table, at, faults));
        }
        if let Some(value) = timeouts_value {
            match value.get_ref() {
                DeValue::Table(table) => raw.timeouts = timeouts(table, offset(value), faults),
                other => not_a_table(value, "timeouts", other, faults),
            }
        }
        if let Some(value) = metrics {
            match value.get_ref() {
                DeValue::Table(table) => {
                    let at = offset(value);
                    let mut reader =
                        TableReader::new(table, at, "[metrics]", &["listen", "top_hosts"], faults);
                    raw.metrics_listen = reader.string("listen", "\"127.0.0.1:9464\"");
                    raw.metrics_top_hosts = reader.integer("top_hosts", 10);
                }
                other => not_a_table(value, "metrics", other, faults),
            }
        }
        if let Some(value) = log_value {
            match value.get_ref() {
                DeValue::Table(table) => raw.log = log(table, offset(value), faults),
                other => not_a_table(value, "log", other, faults),
            }
        }
        raw
    }

    /// `natgw run --public IF --private IF --eip ADDR --source CIDR`: one pool, one snat rule.
    pub(super) fn from_flags(flags: &Flags) -> Self {
        let list = |flag: &'static str, values: &[String]| {
            let items = values
                .iter()
                .map(|value| Located { value: value.clone(), at: At::Flag(flag) })
                .collect();
            Field::flag(flag, Strings { items, whole: true })
        };
        Self {
            gateway: RawGateway {
                public: list("--public", &flags.public),
                private: list("--private", &flags.private),
                ..RawGateway::default()
            },
            pools: vec![RawPool {
                at: Some(At::Flag("--eip")),
                addresses: list("--eip", &flags.eip),
                ..RawPool::default()
            }],
            snat: vec![RawSnat {
                at: Some(At::Flag("--source")),
                source: list("--source", &flags.source),
                ..RawSnat::default()
            }],
            ..Self::default()
        }
    }
}

fn not_a_table(value: &Spanned<DeValue<'_>>, name: &str, found: &DeValue<'_>, faults: &mut Faults) {
    let remedy = match found {
        DeValue::Array(_) => format!("write it once, as [{name}] with single brackets"),
        _ => format!("write a [{name}] section"),
    };
    faults.add(offset(value), format!("{name} is {}", kind(found)), remedy);
}

/// The tables of a `[[name]]` section; none of it, and a fault, where it is something else.
fn sections<'a, 'i>(
    value: Option<&'a Spanned<DeValue<'i>>>,
    name: &'static str,
    faults: &mut Faults,
) -> Option<Vec<(&'a DeTable<'i>, At)>> {
    let Some(value) = value else { return Some(Vec::new()) };
    let remedy = format!("write [[{name}]] with double brackets, once for each");
    let Some(array) = value.get_ref().as_array() else {
        faults.add(offset(value), format!("{name} is {}", kind(value.get_ref())), remedy);
        return None;
    };
    let mut tables = Vec::new();
    for item in array {
        match item.get_ref() {
            DeValue::Table(table) => tables.push((table, offset(item))),
            other => {
                let what = format!("an element of {name} is {}", kind(other));
                faults.add(offset(item), what, remedy.clone());
            }
        }
    }
    Some(tables)
}

fn gateway(table: &DeTable<'_>, at: At, faults: &mut Faults) -> RawGateway {
    const KEYS: &[&str] = &[
        "name",
        "profile",
        "public",
        "private",
        "xdp_mode",
        "sessions",
        "hairpin",
        "idle_reset",
        "mss_clamp",
        "state_dir",
        "bpf_dir",
    ];
    let mut reader = TableReader::new(table, at, "[gateway]", KEYS, faults);
    let public = reader.strings("public", "\"eth0\"");
    let private = reader.strings("private", "\"eth1\"");
    RawGateway {
        name: reader.string("name", "\"default\""),
        profile: reader.string("profile", "\"aws\""),
        public: reader.require("public", "[\"eth0\"]", public),
        private: reader.require("private", "[\"eth1\"]", private),
        xdp_mode: reader.string("xdp_mode", "\"auto\""),
        sessions: reader.integer("sessions", 1_048_576),
        hairpin: reader.boolean("hairpin"),
        idle_reset: reader.boolean("idle_reset"),
        mss_clamp: reader
            .word_or_integer("mss_clamp", "mss_clamp = \"auto\", \"off\" or a number such as 1360"),
        state_dir: reader.string("state_dir", "\"/run/natgw\""),
        bpf_dir: reader.string("bpf_dir", "\"/sys/fs/bpf/natgw\""),
    }
}

fn pool(table: &DeTable<'_>, at: At, faults: &mut Faults) -> RawPool {
    const KEYS: &[&str] = &[
        "name",
        "addresses",
        "interface",
        "ports",
        "mapping",
        "filtering",
        "overload",
        "sessions_per_host",
        "new_sessions_per_second_per_host",
    ];
    let mut reader = TableReader::new(table, at, "[[pool]]", KEYS, faults);
    let addresses = reader.strings("addresses", "\"198.51.100.10\"");
    RawPool {
        at: Some(at),
        name: reader.string("name", "\"default\""),
        addresses: reader.require("addresses", "[\"198.51.100.10\"]", addresses),
        interface: reader.string("interface", "\"eth0\""),
        ports: reader.string("ports", "\"1024-65535\""),
        mapping: reader.string("mapping", "\"endpoint-independent\""),
        filtering: reader.string("filtering", "\"address-dependent\""),
        overload: reader.boolean("overload"),
        sessions_per_host: reader.integer("sessions_per_host", 0),
        new_sessions_per_second_per_host: reader.integer("new_sessions_per_second_per_host", 0),
    }
}

fn snat(table: &DeTable<'_>, at: At, faults: &mut Faults) -> RawSnat {
    let mut reader = TableReader::new(table, at, "[[snat]]", &["source", "pool", "exempt"], faults);
    let source = reader.strings("source", "\"10.0.0.0/16\"");
    RawSnat {
        at: Some(at),
        source: reader.require("source", "[\"10.0.0.0/16\"]", source),
        pool: reader.string("pool", "\"default\""),
        exempt: reader.strings("exempt", "\"10.0.0.0/8\""),
    }
}

fn forward(table: &DeTable<'_>, at: At, faults: &mut Faults) -> RawForward {
    let mut reader =
        TableReader::new(table, at, "[[forward]]", &["protocol", "public", "private"], faults);
    let protocol = reader.string("protocol", "\"tcp\"");
    let public = reader.string("public", "\"198.51.100.10:443\"");
    let private = reader.string("private", "\"10.0.1.5:8443\"");
    RawForward {
        protocol: reader.require("protocol", "\"tcp\"", protocol),
        public: reader.require("public", "\"198.51.100.10:443\"", public),
        private: reader.require("private", "\"10.0.1.5:8443\"", private),
    }
}

fn one_to_one(table: &DeTable<'_>, at: At, faults: &mut Faults) -> RawOneToOne {
    let mut reader = TableReader::new(table, at, "[[one_to_one]]", &["public", "private"], faults);
    let public = reader.string("public", "\"198.51.100.20\"");
    let private = reader.string("private", "\"10.0.1.9\"");
    RawOneToOne {
        public: reader.require("public", "\"198.51.100.20\"", public),
        private: reader.require("private", "\"10.0.1.9\"", private),
    }
}

fn timeouts(table: &DeTable<'_>, at: At, faults: &mut Faults) -> RawTimeouts {
    const KEYS: &[&str] = &["tcp_established", "tcp_transitory", "udp", "icmp", "port_hold"];
    let mut reader = TableReader::new(table, at, "[timeouts]", KEYS, faults);
    RawTimeouts {
        tcp_established: reader.string("tcp_established", "\"350s\""),
        tcp_transitory: reader.string("tcp_transitory", "\"60s\""),
        udp: reader.string("udp", "\"350s\""),
        icmp: reader.string("icmp", "\"60s\""),
        port_hold: reader.string("port_hold", "\"0s\""),
    }
}

fn log(table: &DeTable<'_>, at: At, faults: &mut Faults) -> RawLog {
    const KEYS: &[&str] = &[
        "file",
        "format",
        "fields",
        "constants",
        "opened",
        "interval",
        "bulk",
        "rotate_mb",
        "rotate_every",
        "keep",
        "compress",
        "ipfix",
        "ipfix_domain",
    ];
    let mut reader = TableReader::new(table, at, "[log]", KEYS, faults);
    RawLog {
        at: Some(at),
        file: reader.string("file", "\"/var/log/natgw/flows.jsonl\""),
        format: reader.string("format", "\"json\""),
        fields: reader.string("fields", "\"version srcaddr dstaddr bytes\""),
        constants: reader.strings("constants", "\"account-id=123456789012\""),
        opened: reader.boolean("opened"),
        interval: reader.string("interval", "\"10m\""),
        bulk: reader.string("bulk", "\"1m\""),
        rotate_mb: reader.integer("rotate_mb", 100),
        rotate_every: reader.string("rotate_every", "\"1d\""),
        keep: reader.integer("keep", 10),
        compress: reader.boolean("compress"),
        ipfix: reader.string("ipfix", "\"192.0.2.5:4739\""),
        ipfix_domain: reader.integer("ipfix_domain", 1),
    }
}
