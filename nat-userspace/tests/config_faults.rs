//! Every wrong configuration that the contract names, found at its place.
//!
//! In the texts `^` stands before the character that the fault must point at; it is taken out
//! before the text is parsed.

use nat_userspace::config::{
    self, Flags, HostInterface, HostView, Listener, Overrides, PortRange, Protocol,
};

/// A host with two Ethernet interfaces, a tunnel, an ssh server, and DNS on one address.
fn host() -> HostView {
    let interface = |name: &str, ethernet, addresses: &[&str]| HostInterface {
        name: name.to_owned(),
        ethernet,
        addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
    };
    let listener = |protocol, address: &str, port| Listener {
        protocol,
        address: address.parse().expect("address"),
        port,
    };
    HostView {
        interfaces: vec![
            interface("lo", false, &["127.0.0.1"]),
            interface("eth0", true, &["192.0.2.10"]),
            interface("eth1", true, &["10.0.0.1", "10.0.0.2"]),
            interface("eth2", true, &[]),
            interface("wg0", false, &["10.9.0.1"]),
        ],
        listeners: vec![
            listener(Protocol::Tcp, "0.0.0.0", 22),
            listener(Protocol::Udp, "192.0.2.10", 53),
        ],
        local_ports: Some(PortRange { first: 32768, last: 60999 }),
    }
}

/// A right configuration, to be followed by what is wrong.
const GATEWAY: &str = "[gateway]\npublic = [\"eth0\"]\nprivate = [\"eth1\"]\n";
const POOL: &str = "[[pool]]\naddresses = [\"198.51.100.10\", \"198.51.100.16/30\"]\n";

/// The places of the marks, as "t.toml:LINE:COLUMN: ", and the text without them.
fn unmark(marked: &str) -> (String, Vec<String>) {
    let mut text = String::new();
    let mut places = Vec::new();
    let (mut line, mut column) = (1, 1);
    for character in marked.chars() {
        match character {
            '^' => {
                places.push(format!("t.toml:{line}:{column}: "));
                continue;
            }
            '\n' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
        text.push(character);
    }
    (text, places)
}

fn faults_of(text: &str) -> Vec<String> {
    match config::parse_text(text, "t.toml", &Overrides::default(), &host()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.lines().to_vec(),
    }
}

/// The faults of the text are those at the marks, in that order, with these words in them, and each
/// has a remedy.
#[track_caller]
fn assert_faults(marked: &str, words: &[&str]) {
    let (text, places) = unmark(marked);
    let lines = faults_of(&text);
    assert_eq!(places.len(), words.len(), "a mark for each fault");
    assert_eq!(lines.len(), words.len(), "{text}\n{lines:#?}");
    for ((line, place), words) in lines.iter().zip(&places).zip(words) {
        assert!(line.starts_with(place.as_str()), "expected {place}{words}\ngot {line}");
        assert!(line.contains(words), "expected {words}\ngot {line}");
        let remedy = line.split_once("; ").map_or("", |(_, remedy)| remedy);
        assert!(!remedy.is_empty(), "no remedy: {line}");
    }
}

#[track_caller]
fn assert_pool_fault(marked: &str, words: &str) {
    assert_faults(&format!("{GATEWAY}{marked}"), &[words]);
}

#[track_caller]
fn assert_rule_fault(marked: &str, words: &str) {
    assert_faults(&format!("{GATEWAY}{POOL}{marked}"), &[words]);
}

#[test]
fn the_base_of_these_tests_is_right() {
    assert_eq!(faults_of(&format!("{GATEWAY}{POOL}")), Vec::<String>::new());
}

#[test]
fn ten_faults_are_ten_located_lines() {
    assert_faults(
        r#"[gateway]
profile = ^"awz"
public = [^"eth9"]
private = ["eth1"]
sessions = ^"many"
^colour = "red"

[[pool]]
addresses = ["198.51.100.10"]
ports = ^"0-65535"

[[pool]]
name = "second"
addresses = [^"198.51.100.8/29"]
^mappping = "endpoint-independent"

[[snat]]
source = [^"10.0.0.1/16"]
pool = ^"secnd"

[timeouts]
udp = ^"0s"
"#,
        &[
            "profile cannot be \"awz\"; did you mean \"aws\"?",
            "interface \"eth9\" does not exist",
            "sessions is a string (\"many\"); write a whole number",
            "unknown key \"colour\" in [gateway]",
            "contains port 0",
            "198.51.100.8/29 of pool \"second\" overlaps 198.51.100.10 of pool \"default\"",
            "unknown key \"mappping\" in [[pool]]; did you mean \"mapping\"?",
            "\"10.0.0.1/16\" has host bits set; write \"10.0.0.0/16\"",
            "there is no pool named \"secnd\"; did you mean \"second\"?",
            "the timeout udp is zero",
        ],
    );
}

#[test]
fn unknown_keys_are_found_in_every_section() {
    assert_faults(
        &format!(
            "^colour = 1\n{GATEWAY}^x = 1\n{POOL}^x = 1\n[[snat]]\nsource = [\"10.0.0.0/8\"]\n^x = 1\n\
             [[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.10:443\"\n\
             private = \"10.0.0.5:443\"\n^x = 1\n\
             [[one_to_one]]\npublic = \"198.51.100.20\"\nprivate = \"10.0.0.9\"\n^x = 1\n\
             [timeouts]\n^x = 1\n[metrics]\n^x = 1\n[^sant]\nsource = 1\n"
        ),
        &[
            "unknown key \"colour\" in the file",
            "unknown key \"x\" in [gateway]",
            "unknown key \"x\" in [[pool]]",
            "unknown key \"x\" in [[snat]]",
            "unknown key \"x\" in [[forward]]",
            "unknown key \"x\" in [[one_to_one]]",
            "unknown key \"x\" in [timeouts]",
            "unknown key \"x\" in [metrics]",
            "unknown key \"sant\" in the file; did you mean \"snat\"?",
        ],
    );
}

#[test]
fn a_misspelt_required_key_is_one_fault_and_not_also_a_missing_key() {
    assert_pool_fault("[[pool]]\n^adresses = [\"198.51.100.10\"]\n", "did you mean \"addresses\"?");
}

#[test]
fn missing_required_keys_are_found_at_their_section() {
    assert_faults(
        "^^[gateway]\nname = \"x\"\n[[pool]]\naddresses = [\"198.51.100.10\"]\n",
        &["[gateway] has no public", "[gateway] has no private"],
    );
    assert_pool_fault("^[[pool]]\nname = \"x\"\n", "[[pool]] has no addresses");
    assert_rule_fault("^[[snat]]\npool = \"default\"\n", "[[snat]] has no source");
    assert_faults(
        &format!("{GATEWAY}{POOL}^^^[[forward]]\n"),
        &["has no protocol", "has no public", "has no private"],
    );
    assert_faults(
        &format!("{GATEWAY}{POOL}^^[[one_to_one]]\n"),
        &["has no public", "has no private"],
    );
    assert_faults(&format!("^{POOL}"), &["no [gateway] section"]);
    assert_faults(&format!("^{GATEWAY}"), &["no [[pool]] and no [[one_to_one]]"]);
}

#[test]
fn a_wrong_type_is_found_at_its_value_with_the_right_one() {
    for (key, words) in [
        ("name = ^5", "name is a whole number (5); write a string"),
        ("sessions = ^1.5", "sessions is a fraction"),
        ("hairpin = ^\"yes\"", "hairpin is a string (\"yes\"); write hairpin = true or"),
        ("idle_reset = ^1", "idle_reset is a whole number"),
        ("mss_clamp = ^true", "mss_clamp is a boolean"),
        ("xdp_mode = ^[\"native\"]", "xdp_mode is a list"),
        ("state_dir = ^2026-11-21", "state_dir is a date"),
    ] {
        assert_faults(&format!("{GATEWAY}{key}\n{POOL}"), &[words]);
    }
    assert_faults(
        &format!("[gateway]\npublic = ^\"eth0\"\nprivate = [\"eth1\", ^7]\n{POOL}"),
        &["public is a string (\"eth0\"); write a list", "an element of private is a whole number"],
    );
    assert_rule_fault("[[snat]]\nsource = ^\"10.0.0.0/8\"\n", "source is a string");
    assert_rule_fault("[timeouts]\nudp = ^350\n", "udp is a whole number (350)");
    assert_faults(
        &format!("{GATEWAY}^[pool]\naddresses = [\"198.51.100.10\"]\n"),
        &["[[pool]] with double brackets"],
    );
}

#[test]
fn values_outside_their_words_or_bounds_are_found() {
    for (key, words) in [
        ("profile = ^\"azure\"", "it may be \"aws\", \"rfc\""),
        ("xdp_mode = ^\"navite\"", "did you mean \"native\"?"),
        ("sessions = ^0", "sessions = 0 is no size"),
        ("sessions = ^99999999999", "sessions = 99999999999 is no size"),
        ("mss_clamp = ^20", "mss_clamp cannot be 20"),
        ("mss_clamp = ^\"on\"", "write \"auto\", \"off\" or a number"),
        ("name = ^\"a/b\"", "not a usable name"),
        ("state_dir = ^\"run\"", "not an absolute path"),
    ] {
        assert_faults(&format!("{GATEWAY}{key}\n{POOL}"), &[words]);
    }
    for (key, words) in [
        ("mapping = ^\"address-dependent\"", "mapping cannot be \"address-dependent\""),
        ("filtering = ^\"none\"", "filtering cannot be \"none\""),
        ("sessions_per_host = ^-1", "sessions_per_host cannot be -1"),
        ("new_sessions_per_second_per_host = ^4294967296", "cannot be 4294967296"),
        ("ports = ^\"5000-4000\"", "write \"4000-5000\""),
        ("ports = ^\"1024-70000\"", "not a range of ports"),
        ("interface = ^\"eth1\"", "is no public interface"),
        ("name = ^\"\"", "not a usable name"),
    ] {
        assert_pool_fault(&format!("{POOL}{key}\n"), words);
    }
}

#[test]
fn interfaces_must_exist_be_ethernet_and_stand_once_in_a_list() {
    assert_faults(
        &format!(
            "[gateway]\npublic = [\"eth0\", ^\"eth7\", ^\"wg0\", ^\"eth0\"]\nprivate = [^\"lo\"]\n{POOL}"
        ),
        &[
            "interface \"eth7\" does not exist",
            "interface \"wg0\" is not an Ethernet interface; this host has eth0, eth1, eth2",
            "interface \"eth0\" is twice in public",
            "interface \"lo\" is not an Ethernet interface",
        ],
    );
    assert_faults(
        &format!("[gateway]\npublic = ^[]\nprivate = [\"eth1\"]\n{POOL}"),
        &["the list public is empty"],
    );
}

#[test]
fn pool_addresses_must_be_usable() {
    for (addresses, words) in [
        ("^[]", "pool \"default\" is empty"),
        ("[^\"198.51.100.300\"]", "not an IPv4 address"),
        ("[^\"198.51.100.17/30\"]", "host bits set"),
        ("[^\"198.51.100.0/33\"]", "not an IPv4 prefix"),
        ("[^\"2001:db8::1\"]", "IPv6"),
        ("[^\"2001:db8::/64\"]", "IPv6"),
        ("[^\"224.0.0.1\"]", "cannot be the address of a host"),
        ("[^\"127.0.0.0/8\"]", "cannot be the address of a host"),
        ("[^\"198.0.0.0/8\"]", "more than 4096 pool addresses"),
        ("[^\"eth9\"]", "interface \"eth9\" does not exist"),
        ("[^\"wg0\"]", "not an Ethernet interface"),
        ("[^\"eth2\"]", "has no IPv4 address"),
    ] {
        assert_pool_fault(&format!("[[pool]]\naddresses = {addresses}\n"), words);
    }
}

#[test]
fn overlapping_public_addresses_are_found_at_the_later_one() {
    assert_pool_fault(
        "[[pool]]\naddresses = [\"198.51.100.16/30\", ^\"198.51.100.17\"]\n",
        "overlaps 198.51.100.16/30",
    );
    assert_pool_fault(
        "[[pool]]\naddresses = [\"eth0\", ^\"192.0.2.10\"]\n",
        "192.0.2.10 of pool \"default\" overlaps eth0",
    );
    assert_rule_fault(
        "[[pool]]\nname = \"b\"\naddresses = [^\"198.51.100.0/24\"]\n",
        "pool \"b\" overlaps",
    );
    assert_rule_fault(
        "[[one_to_one]]\npublic = ^\"198.51.100.18\"\nprivate = \"10.0.0.9\"\n",
        "of a one-to-one mapping overlaps 198.51.100.16/30 of pool \"default\"",
    );
    assert_faults(
        &format!(
            "{GATEWAY}[[one_to_one]]\npublic = \"198.51.100.18\"\nprivate = \"10.0.0.9\"\n{}",
            POOL.replace("\"198.51.100.16", "^\"198.51.100.16")
        ),
        &["198.51.100.16/30 of pool \"default\" overlaps 198.51.100.18 of a one-to-one mapping"],
    );
    assert_rule_fault(
        "[[one_to_one]]\npublic = \"198.51.100.20\"\nprivate = \"10.0.0.9\"\n\
         [[one_to_one]]\npublic = ^\"198.51.100.20\"\nprivate = \"10.0.0.8\"\n",
        "overlaps 198.51.100.20 of a one-to-one mapping",
    );
}

#[test]
fn pool_names_are_unique_and_rules_name_one() {
    assert_rule_fault(
        "^[[pool]]\naddresses = [\"198.51.100.30\"]\n",
        "two pools named \"default\"",
    );
    assert_rule_fault(
        "[[snat]]\nsource = [\"10.0.0.0/8\"]\npool = ^\"defualt\"\n",
        "did you mean \"default\"?",
    );
    assert_faults(
        &format!(
            "{GATEWAY}[[pool]]\nname = \"a\"\naddresses = [\"198.51.100.10\"]\n^[[snat]]\nsource = [\"10.0.0.0/8\"]\n"
        ),
        &["there is no pool named \"default\"; the pools are a"],
    );
}

#[test]
fn snat_sources_are_prefixes_and_each_stands_once() {
    assert_rule_fault("[[snat]]\nsource = ^[]\n", "the list source is empty");
    assert_rule_fault(
        "[[snat]]\nsource = [\"10.0.0.0/8\"]\nexempt = [^\"10.1.0.1/8\"]\n",
        "host bits set",
    );
    assert_rule_fault("[[snat]]\nsource = [^\"fd00::/8\"]\n", "IPv6");
    assert_rule_fault("[[snat]]\nsource = [\"10.0.0.0/8\", ^\"10.0.0.0/8\"]\n", "10.0.0.0/8");
    assert_rule_fault(
        "[[snat]]\nsource = [\"10.0.0.0/8\"]\n[[snat]]\nsource = [\"10.1.0.0/16\", ^\"10.0.0.0/8\"]\n",
        "by an earlier [[snat]]",
    );
}

const FORWARD: &str = "[[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.10:8000-8010\"\nprivate = \"10.0.0.5:9000-9010\"\n";

fn forward(protocol: &str, public: &str, private: &str) -> String {
    format!("[[forward]]\nprotocol = {protocol}\npublic = {public}\nprivate = {private}\n")
}

#[test]
fn forwards_are_right_in_themselves() {
    for (protocol, public, private, words) in [
        ("^\"icmp\"", "\"198.51.100.10:80\"", "\"10.0.0.5:80\"", "it may be \"tcp\", \"udp\""),
        ("\"tcp\"", "^\"198.51.100.10\"", "\"10.0.0.5:80\"", "has no port"),
        ("\"tcp\"", "^\"198.51.100.10:0\"", "\"10.0.0.5:80\"", "port 0"),
        ("\"tcp\"", "\"198.51.100.10:80\"", "^\"10.0.0.5:0\"", "port 0"),
        ("\"tcp\"", "\"198.51.100.10:80\"", "^\"[fd00::1]:80\"", "IPv6"),
        (
            "\"tcp\"",
            "\"198.51.100.10:80-90\"",
            "^\"10.0.0.5:80-89\"",
            "write private = \"10.0.0.5:80-90\"",
        ),
        ("\"tcp\"", "\"198.51.100.10:80-90\"", "^\"10.0.0.5:80\"", "11 public ports"),
        ("\"tcp\"", "^\"203.0.113.9:80\"", "\"10.0.0.5:80\"", "203.0.113.9 is in no pool"),
    ] {
        assert_rule_fault(&forward(protocol, public, private), words);
    }
}

#[test]
fn forwards_do_not_meet_each_other() {
    assert_rule_fault(
        &format!("{FORWARD}{}", FORWARD.replace("public = ", "public = ^")),
        "the forward of tcp 198.51.100.10:8000-8010 to 10.0.0.5:9000-9010 is there twice",
    );
    assert_rule_fault(
        &format!("{FORWARD}{}", forward("\"tcp\"", "^\"198.51.100.10:8010\"", "\"10.0.0.6:80\"")),
        "overlaps the forward of tcp 198.51.100.10:8000-8010",
    );
    let other_protocol = forward("\"udp\"", "\"198.51.100.10:8010\"", "\"10.0.0.6:80\"");
    let other_address = forward("\"tcp\"", "\"198.51.100.16:8010\"", "\"10.0.0.6:80\"");
    let text = format!("{GATEWAY}{POOL}{FORWARD}{other_protocol}{other_address}");
    assert_eq!(faults_of(&text), Vec::<String>::new());
}

#[test]
fn a_forward_onto_a_port_that_the_host_listens_on_is_found() {
    let own = "[[pool]]\naddresses = [\"eth0\"]\n";
    let ssh = forward("\"tcp\"", "^\"192.0.2.10:20-30\"", "\"10.0.0.5:20-30\"");
    assert_pool_fault(&format!("{own}{ssh}"), "a socket of this host listens on tcp 0.0.0.0:22");
    let dns = forward("\"udp\"", "^\"192.0.2.10:53\"", "\"10.0.0.5:53\"");
    assert_pool_fault(&format!("{own}{dns}"), "listens on udp 192.0.2.10:53");
    // The wildcard socket gets nothing that is sent to an address the host does not own.
    let elsewhere = forward("\"tcp\"", "\"198.51.100.10:22\"", "\"10.0.0.5:22\"");
    assert_eq!(faults_of(&format!("{GATEWAY}{POOL}{elsewhere}")), Vec::<String>::new());
}

#[test]
fn one_to_one_mappings_leave_the_host_an_address_and_each_private_host_one_public() {
    assert_rule_fault(
        "[[one_to_one]]\npublic = ^\"192.0.2.10\"\nprivate = \"10.0.0.9\"\n",
        "the only address of interface \"eth0\"",
    );
    let second = "[[one_to_one]]\npublic = \"10.0.0.2\"\nprivate = \"10.0.0.9\"\n";
    assert_eq!(faults_of(&format!("{GATEWAY}{POOL}{second}")), Vec::<String>::new());
    assert_rule_fault(
        "[[one_to_one]]\npublic = \"198.51.100.20\"\nprivate = \"10.0.0.9\"\n\
         [[one_to_one]]\npublic = \"198.51.100.21\"\nprivate = ^\"10.0.0.9\"\n",
        "10.0.0.9 already has a one-to-one address",
    );
    assert_rule_fault(
        "[[one_to_one]]\npublic = \"198.51.100.20\"\nprivate = ^\"10.0.0\"\n",
        "not an IPv4 address",
    );
}

#[test]
fn timeouts_and_the_metrics_address_are_checked() {
    for key in ["tcp_established", "tcp_transitory", "udp", "icmp"] {
        assert_rule_fault(&format!("[timeouts]\n{key} = ^\"0s\"\n"), "is zero");
    }
    assert_eq!(
        faults_of(&format!("{GATEWAY}{POOL}[timeouts]\nport_hold = \"0s\"\n")),
        Vec::<String>::new()
    );
    assert_rule_fault("[timeouts]\nicmp = ^\"5 minutes\"\n", "such as \"350s\" or \"2h4m\"");
    assert_rule_fault("[metrics]\nlisten = ^\"9464\"\n", "not an address with a port");
    assert_rule_fault("[metrics]\nlisten = ^\"127.0.0.1:0\"\n", "port 0");
}

#[test]
fn what_is_not_toml_is_located_and_hides_no_other_fault_where_the_rest_can_be_read() {
    assert_faults("[gateway^\n", &["not TOML"]);
    assert_faults(
        &format!("{GATEWAY}name = \"a\"\n^name = \"b\"\n{POOL}[timeouts]\nudp = ^\"0s\"\n"),
        &["the key is there twice", "the timeout udp is zero"],
    );
    assert_faults(
        &format!("{GATEWAY}xdp_mode = ^native\n{POOL}[timeouts]\nudp = ^\"0s\"\n"),
        &["write a word in quotes", "the timeout udp is zero"],
    );
}

#[test]
fn a_pool_that_could_not_be_read_is_not_blamed_on_what_refers_to_it() {
    assert_faults(
        &format!(
            "{GATEWAY}[[pool]]\nname = ^7\naddresses = [^\"198.51.100.1O\"]\n\
             [[snat]]\nsource = [\"10.0.0.0/8\"]\npool = \"main\"\n{}",
            forward("\"tcp\"", "\"198.51.100.10:80\"", "\"10.0.0.5:80\"")
        ),
        &["name is a whole number", "not an IPv4 address"],
    );
}

#[test]
fn flags_are_checked_as_a_file_is_and_faults_name_the_flag() {
    let list = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let flags = Flags {
        public: list(&["eth7"]),
        private: list(&["eth1"]),
        eip: list(&["198.51.100.300", "198.51.100.10"]),
        source: list(&["10.0.0.1/8"]),
    };
    let faults = config::from_flags(&flags, &Overrides::default(), &host()).expect_err("faults");
    let starts: Vec<&str> =
        faults.lines().iter().map(|line| line.split(": ").next().unwrap_or_default()).collect();
    assert_eq!(starts, ["--public", "--eip", "--source"]);
}

#[test]
fn a_misspelt_key_hides_neither_its_faults_nor_those_of_others() {
    assert_faults(
        &format!(
            "{GATEWAY}[[pool]]\n^adresses = [\"198.51.100.10\", ^\"198.51.100.17/30\"]\n{}{}{}",
            forward("\"tcp\"", "\"198.51.100.10:80\"", "\"10.0.0.5:80\""),
            forward("\"tcp\"", "\"198.51.100.18:80\"", "\"10.0.0.5:80\""),
            forward("\"tcp\"", "^\"203.0.113.9:80\"", "\"10.0.0.5:80\""),
        ),
        &["did you mean \"addresses\"?", "host bits set", "203.0.113.9 is in no pool"],
    );
}

#[test]
fn two_faults_of_one_forward_are_two_lines() {
    assert_faults(
        &format!(
            "{GATEWAY}{POOL}{FORWARD}{}",
            forward("\"tcp\"", "^\"198.51.100.10:8000\"", "^\"10.0.0.5:0\"")
        ),
        &["overlaps the forward of tcp", "port 0"],
    );
}

#[test]
fn a_string_in_a_lists_place_is_one_fault_whatever_it_says() {
    assert_rule_fault("[[snat]]\nsource = ^\"10.0.0.1/8\"\n", "source is a string");
    assert_faults(
        &format!("[gateway]\npublic = ^\"eth7\"\nprivate = [\"eth1\"]\n{POOL}"),
        &["public is a string"],
    );
    assert_pool_fault(
        &format!(
            "[[pool]]\naddresses = ^\"198.51.100.10\"\n{}",
            forward("\"tcp\"", "\"198.51.100.10:80\"", "\"10.0.0.5:80\"")
        ),
        "addresses is a string",
    );
}

#[test]
fn a_misspelt_section_is_one_fault_and_what_is_in_it_is_read() {
    assert_faults(
        &format!(
            "{}[[^pol]]\naddresses = [^\"x.1\", \"198.51.100.10\"]\n[timeouts]\nudp = ^\"0s\"\n",
            GATEWAY.replace("[gateway]", "[^gatway]")
        ),
        &[
            "did you mean \"gateway\"?",
            "did you mean \"pool\"?",
            "interface \"x.1\" does not exist",
            "is zero",
        ],
    );
}
