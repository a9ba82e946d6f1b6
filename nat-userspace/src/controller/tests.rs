//! Compile and plan together: what a change of the file does to the maps, step by step.

use std::collections::BTreeMap;

use nat_common::{
    maps::ADDRESS_SLOTS,
    net::{Ip4, Port, proto},
    rules::{Pool, address, control, pool},
    session::{SessionImage, State, flags},
};

use super::*;
use crate::{
    api::model::AddressState,
    config::{self, Config, HostInterface, HostView, Overrides, PortRange},
};

const HZ: u32 = 250;

fn config(rest: &str) -> Config {
    let interface = |name: &str, address: &str| HostInterface {
        name: name.to_owned(),
        ethernet: true,
        addresses: vec![address.parse().expect("an address")],
    };
    let host = HostView {
        interfaces: vec![interface("wan0", "192.0.2.1"), interface("lan0", "10.0.0.1")],
        ..HostView::default()
    };
    let text = format!("[gateway]\npublic = [\"wan0\"]\nprivate = [\"lan0\"]\n{rest}");
    match config::parse_text(&text, "test.toml", &Overrides::default(), &host) {
        Ok(config) => config,
        Err(faults) => panic!("{faults}"),
    }
}

fn facts() -> Facts {
    let interfaces = BTreeMap::from([("wan0".to_owned(), 3), ("lan0".to_owned(), 4)]);
    Facts { hz: HZ, interfaces, ..Facts::default() }
}

fn compiled(config: &Config, current: &Contents) -> Contents {
    compile(config, &facts(), current).expect("it fits")
}

fn fresh(rest: &str) -> Contents {
    compiled(&config(rest), &Contents::default())
}

fn ip(text: &str) -> Ip4 {
    text.parse::<std::net::Ipv4Addr>().expect("an address").into()
}

const POOL: &str = "[[pool]]\nname = \"default\"\naddresses = [\"198.51.100.10\"]\n";

#[test]
fn a_prefix_that_an_earlier_rule_covers_is_left_out_and_a_longer_earlier_one_wins() {
    let contents = fresh(
        "[[pool]]\nname = \"a\"\naddresses = [\"198.51.100.1\"]\n\
         [[pool]]\nname = \"b\"\naddresses = [\"198.51.100.2\"]\n\
         [[snat]]\nsource = [\"10.1.1.0/24\"]\npool = \"a\"\n\
         [[snat]]\nsource = [\"10.1.0.0/16\"]\npool = \"b\"\n\
         [[snat]]\nsource = [\"10.1.2.0/24\"]\npool = \"a\"\n",
    );
    let sources: Vec<String> = contents.snat.keys().map(ToString::to_string).collect();
    assert_eq!(sources, ["10.1.0.0/16", "10.1.1.0/24"]);
    let pool = |source| contents.snat_rule(ip(source)).map(|rule| rule.pool);
    assert_eq!(pool("10.1.1.9"), Some(0));
    assert_eq!(pool("10.1.2.9"), Some(1), "the first match in file order decides");
    assert_eq!(pool("10.2.0.1"), None);
}

#[test]
fn rules_without_exemptions_share_number_zero_and_equal_exemptions_share_another() {
    let contents = fresh(&format!(
        "{POOL}[[snat]]\nsource = [\"10.1.0.0/16\"]\npool = \"default\"\n\
         [[snat]]\nsource = [\"10.2.0.0/16\"]\npool = \"default\"\nexempt = [\"10.0.0.0/8\"]\n\
         [[snat]]\nsource = [\"10.3.0.0/16\"]\npool = \"default\"\nexempt = [\"10.0.0.0/8\"]\n",
    ));
    let rule = |source| contents.snat_rule(ip(source)).expect("a rule").rule;
    assert_eq!(rule("10.1.0.1"), 0);
    assert_eq!((rule("10.2.0.1"), rule("10.3.0.1")), (1, 1));
    assert!(contents.is_exempt(1, ip("10.9.9.9")) && !contents.is_exempt(0, ip("10.9.9.9")));
}

#[test]
fn numbers_that_sessions_refer_to_survive_a_reordered_file() {
    let before = fresh(
        "[[pool]]\nname = \"a\"\naddresses = [\"198.51.100.1\", \"198.51.100.3\"]\n\
         [[pool]]\nname = \"b\"\naddresses = [\"198.51.100.2\"]\n",
    );
    let reordered = config(
        "[[pool]]\nname = \"new\"\naddresses = [\"198.51.100.9\"]\n\
         [[pool]]\nname = \"b\"\naddresses = [\"198.51.100.2\"]\n\
         [[pool]]\nname = \"a\"\naddresses = [\"198.51.100.3\", \"198.51.100.1\"]\n",
    );
    let after = compiled(&reordered, &before);
    for address in ["198.51.100.1", "198.51.100.2", "198.51.100.3"] {
        let slot = before.slot_of(ip(address)).expect("a slot");
        assert_eq!(after.slot_of(ip(address)), Some(slot));
        assert_eq!(after.addresses[&slot].pool, before.addresses[&slot].pool);
    }
    let new = after.slot_of(ip("198.51.100.9")).expect("a slot");
    assert_eq!((new, after.addresses[&new].pool), (3, 2));
}

#[test]
fn a_slot_that_goes_out_of_use_is_not_given_out_in_the_same_breath() {
    let before = fresh(POOL);
    let replaced = config(&POOL.replace("198.51.100.10", "198.51.100.11"));
    let between = compiled(&replaced, &before);
    assert_eq!(between.slot_of(ip("198.51.100.11")), Some(1));
    assert_eq!(between.slot_of(ip("198.51.100.10")), None);
    let third = config(&POOL.replace("198.51.100.10", "198.51.100.12"));
    assert_eq!(compiled(&third, &between).slot_of(ip("198.51.100.12")), Some(0));
}

#[test]
fn addresses_with_equal_ports_share_a_template_and_a_forward_gets_one_of_its_own() {
    let contents = fresh(
        "[[pool]]\nname = \"a\"\naddresses = [\"198.51.100.1\", \"198.51.100.2\"]\n\
         [[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.2:2000-2001\"\n\
         private = \"10.0.1.5:80-81\"\n",
    );
    let address = |text| contents.addresses[&contents.slot_of(ip(text)).expect("a slot")];
    let [tcp, udp, icmp] = address("198.51.100.1").templates;
    assert!(tcp == udp && udp == icmp);
    let forwarded = address("198.51.100.2");
    assert_eq!(forwarded.templates[1..], [udp, icmp]);
    let range = |first, last| PortRange { first, last };
    assert_eq!(contents.ports(&forwarded, 0), [range(1024, 1999), range(2002, 65535)]);
    assert_eq!(forwarded.flags & address::FORWARDS, address::FORWARDS);
    assert_eq!(forwarded.ports, 64512, "of the pool, for the search");
    let second = contents.forwards[&(ip("198.51.100.2"), proto::TCP, Port::new(2001))];
    assert_eq!((second.address, second.port), (ip("10.0.1.5"), Port::new(81)));
}

#[test]
fn a_template_in_use_is_never_overwritten() {
    let before = fresh(POOL);
    let after = compiled(&config(&format!("{POOL}ports = \"2000-3000\"\n")), &before);
    let rows = |contents: &Contents| contents.templates.keys().copied().collect::<Vec<_>>();
    assert_eq!((rows(&before), rows(&after)), (vec![0], vec![1]));
    let steps = plan(&after, &before);
    assert!(steps.contains(&Step::ForgetPorts { address: ip("198.51.100.10") }));
}

#[test]
fn states_of_an_address_decide_what_the_dataplane_does_with_it() {
    let config = config(POOL);
    let flags = |state, host_owned| {
        let address = "198.51.100.10".parse().expect("an address");
        let addresses = BTreeMap::from([(address, AddressFact { state, host_owned })]);
        let facts = Facts { addresses, ..facts() };
        let contents = compile(&config, &facts, &Contents::default()).expect("it fits");
        let members = contents.pools[&0].members.len();
        (contents.addresses[&0].flags, members)
    };
    let (active, arp, owned) = (address::ACTIVE, address::ANSWER_ARP, address::HOST_OWNED);
    assert_eq!(flags(AddressState::Active, false), (active | arp, 1));
    assert_eq!(flags(AddressState::Active, true), (active | owned, 1));
    assert_eq!(flags(AddressState::Draining, false), (arp, 0));
    assert_eq!(flags(AddressState::Lost, false), (0, 0));
    assert_eq!(flags(AddressState::Failed, false), (0, 0));
}

#[test]
fn a_one_to_one_address_is_in_no_pool_and_is_found_from_both_sides() {
    let contents = fresh("[[one_to_one]]\npublic = \"198.51.100.20\"\nprivate = \"10.0.1.9\"\n");
    let slot = contents.slot_of(ip("198.51.100.20")).expect("a slot");
    assert_eq!(contents.addresses[&slot].flags & address::ONE_TO_ONE, address::ONE_TO_ONE);
    assert!(contents.pools.is_empty());
    let found: Vec<_> = contents
        .one_to_one
        .iter()
        .map(|(key, value)| (key.address, key.inbound, value.address, value.slot))
        .collect();
    let (public, private) = (ip("198.51.100.20"), ip("10.0.1.9"));
    assert_eq!(found, [(private, 0, public, slot), (public, 1, private, slot)]);
}

#[test]
fn profiles_differ_where_the_contract_says() {
    let aws = fresh(POOL);
    let rfc = fresh(&format!("profile = \"rfc\"\n{POOL}"));
    assert_eq!(aws.policy.flags, control::IDLE_RESET);
    let wanted = control::HAIRPIN | control::EXHAUSTION_ERROR | control::HOLD_SYN;
    assert_eq!(rfc.policy.flags, wanted);
    let timeout = |contents: &Contents, state: State| contents.policy.timeouts[state as usize] / HZ;
    assert_eq!(timeout(&aws, State::TcpFinOut), 350);
    assert_eq!(timeout(&rfc, State::TcpEstablished), 7440);
    assert_eq!((timeout(&aws, State::TcpReset), timeout(&rfc, State::TcpOpeningIn)), (60, 240));
    assert_eq!((aws.policy.port_hold, rfc.policy.port_hold), (0, 120 * HZ));
    let behaviour = |contents: &Contents| {
        let Pool { mapping, filtering, .. } = contents.pools[&0].pool;
        (mapping, filtering)
    };
    let dependent = pool::ADDRESS_AND_PORT_DEPENDENT;
    assert_eq!(behaviour(&aws), (dependent, dependent));
    assert_eq!(behaviour(&rfc), (pool::ENDPOINT_INDEPENDENT, pool::ADDRESS_DEPENDENT));
}

#[test]
fn a_pool_bound_to_an_interface_serves_none_while_that_is_missing() {
    let config = config(&format!("{POOL}interface = \"wan0\"\n"));
    assert_eq!(compiled(&config, &Contents::default()).pools[&0].pool.ifindex, 3);
    let missing = Facts { interfaces: BTreeMap::new(), ..facts() };
    let contents = compile(&config, &missing, &Contents::default()).expect("it fits");
    assert_eq!(contents.pools[&0].pool.ifindex, u32::MAX);
}

#[test]
fn nothing_is_planned_where_nothing_changes_and_one_step_where_only_a_timeout_does() {
    let before = fresh(POOL);
    assert_eq!(plan(&compiled(&config(POOL), &before), &before), []);
    let after = compiled(&config(&format!("{POOL}[timeouts]\nudp = \"30s\"\n")), &before);
    assert_eq!(plan(&after, &before), [Step::Policy(Box::new(after.policy))]);
}

#[test]
fn a_range_of_forwards_is_told_in_one_line() {
    let before = fresh(POOL);
    let forward = "[[forward]]\nprotocol = \"udp\"\npublic = \"198.51.100.10:8000-8010\"\n\
                   private = \"10.0.1.5:9000-9010\"\n";
    let after = compiled(&config(&format!("{POOL}{forward}")), &before);
    let lines = describe(&plan(&after, &before));
    let wanted = "forward udp 198.51.100.10:8000-8010 to 10.0.1.5:9000-9010".to_owned();
    assert!(lines.contains(&wanted), "{lines:?}");
    let lines = describe(&plan(&compiled(&config(POOL), &after), &after));
    let wanted = "no forward any more for udp 198.51.100.10:8000-8010".to_owned();
    assert!(lines.contains(&wanted), "{lines:?}");
}

/// The maps as the dataplane would read them, changed by one step after the other.
#[derive(Clone, Default)]
struct Model {
    contents: Contents,
    members: BTreeMap<u32, u32>,
    words: BTreeMap<u32, u32>,
}

impl Model {
    fn apply(&mut self, step: &Step) {
        let contents = &mut self.contents;
        match step.clone() {
            Step::Template { row, ports } => drop(contents.templates.insert(row, ports)),
            Step::Address { slot, address } => drop(contents.addresses.insert(slot, address)),
            Step::Members { first, slots } => {
                for (place, slot) in (first..).zip(slots) {
                    let used = self.words.values().any(|word| lies_in(place, *word));
                    assert!(!used, "place {place} is written while a pool uses it");
                    self.members.insert(place, slot);
                }
            }
            Step::Pool { index, pool } => {
                self.words.insert(index, pool.members);
                let pool = Pool { members: 0, ..pool };
                let entry = PoolContents { pool, members: Vec::new(), upper_half: false };
                contents.pools.insert(index, entry);
            }
            Step::Public { address, value } => drop(contents.public.insert(address, value)),
            Step::Forward { public, value } => drop(contents.forwards.insert(public, value)),
            Step::OneToOne { key, value } => drop(contents.one_to_one.insert(key, value)),
            Step::Exempt { rule, prefix } => {
                let set = contents.exempt.entry(rule).or_default();
                set.push(prefix);
                set.sort();
            }
            Step::Snat { source, rule } => drop(contents.snat.insert(source, rule)),
            Step::RemoveSnat { source } => drop(contents.snat.remove(&source)),
            Step::RemoveExempt { rule, prefix } => {
                let set = contents.exempt.entry(rule).or_default();
                set.retain(|present| *present != prefix);
                if set.is_empty() {
                    contents.exempt.remove(&rule);
                }
            }
            Step::RemoveOneToOne { key } => drop(contents.one_to_one.remove(&key)),
            Step::RemoveForward { public } => drop(contents.forwards.remove(&public)),
            Step::RemovePublic { address } => drop(contents.public.remove(&address)),
            Step::FreePool { index } => {
                self.words.remove(&index);
                contents.pools.remove(&index);
            }
            Step::FreeAddress { slot, .. } => drop(contents.addresses.remove(&slot)),
            Step::ForgetPorts { .. } => {}
            Step::Policy(policy) => contents.policy = *policy,
        }
        for (index, pool) in &mut contents.pools {
            let word = self.words[index];
            let places = (word >> 16)..(word >> 16) + (word & 0xffff);
            pool.members = places.map(|place| self.members[&place]).collect();
            pool.upper_half = word >> 16 >= ADDRESS_SLOTS;
        }
        // Rows that nothing refers to hold no contents.
        if matches!(step, Step::Policy(_)) {
            let addresses = contents.addresses.values().filter(|address| address.ports > 0);
            let used: Vec<u32> = addresses.flat_map(|address| address.templates).collect();
            contents.templates.retain(|row, _| used.contains(row));
        }
    }

    /// Nothing that a packet can meet refers to something that is not there.
    fn check(&self) {
        let contents = &self.contents;
        for rule in contents.snat.values() {
            assert!(contents.pools.contains_key(&rule.pool), "a rule without its pool");
            assert!(rule.rule == 0 || contents.exempt.contains_key(&rule.rule));
        }
        let slots = contents
            .pools
            .values()
            .flat_map(|pool| pool.members.iter().copied())
            .chain(contents.public.values().map(|public| public.slot))
            .chain(contents.forwards.values().map(|forward| u32::from(forward.slot)))
            .chain(contents.one_to_one.values().map(|mapping| mapping.slot));
        for slot in slots {
            let address = contents.addresses.get(&slot).expect("an address in its slot");
            if address.ports > 0 {
                assert!((0..3).all(|p| contents.templates.contains_key(&address.templates[p])));
            }
        }
    }
}

fn lies_in(place: u32, word: u32) -> bool {
    let first = word >> 16;
    (first..first + (word & 0xffff)).contains(&place)
}

#[test]
fn on_the_way_from_any_configuration_to_any_other_no_reference_dangles() {
    let one = "[[pool]]\nname = \"a\"\naddresses = [\"198.51.100.1\", \"198.51.100.2\"]\n\
               [[snat]]\nsource = [\"10.1.0.0/16\"]\npool = \"a\"\nexempt = [\"10.0.0.0/8\"]\n\
               [[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.1:80-90\"\n\
               private = \"10.1.0.5:80-90\"\n";
    let two = "[[pool]]\nname = \"a\"\naddresses = [\"198.51.100.2\"]\nports = \"2000-3000\"\n\
               [[pool]]\nname = \"b\"\naddresses = [\"198.51.100.8/30\"]\n\
               [[snat]]\nsource = [\"10.1.0.0/24\"]\npool = \"b\"\n\
               [[snat]]\nsource = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\npool = \"a\"\n\
               exempt = [\"10.0.0.0/9\", \"172.16.0.0/12\"]\n\
               [[one_to_one]]\npublic = \"198.51.100.1\"\nprivate = \"10.1.0.5\"\n";
    let three = "[[pool]]\nname = \"c\"\naddresses = [\"198.51.100.9\"]\n\
                 [[snat]]\nsource = [\"10.2.0.0/16\"]\npool = \"c\"\nexempt = [\"10.0.0.0/8\"]\n\
                 [[forward]]\nprotocol = \"udp\"\npublic = \"198.51.100.9:85-95\"\n\
                 private = \"10.1.0.5:80-90\"\n";
    let none = "[[one_to_one]]\npublic = \"198.51.100.9\"\nprivate = \"10.9.0.5\"\n";
    let configs: Vec<Config> = [none, one, two, three].map(config).into();
    for way in [[0, 1, 2], [1, 2, 3], [2, 3, 1], [3, 1, 0], [1, 3, 2], [2, 1, 2], [3, 2, 0]] {
        let mut model = Model::default();
        for target in way {
            let wanted = compiled(&configs[target], &model.contents);
            for step in plan(&wanted, &model.contents) {
                model.apply(&step);
                model.check();
            }
            let mut reached = model.contents.clone();
            for pool in reached.pools.values_mut() {
                pool.upper_half = false;
            }
            assert_eq!(reached, wanted, "to {target} on the way {way:?}");
            assert_eq!(plan(&compiled(&configs[target], &model.contents), &model.contents), []);
        }
    }
}

#[test]
fn a_session_is_allowed_as_long_as_the_configuration_would_make_it() {
    let snat = "[[snat]]\nsource = [\"10.1.0.0/16\"]\npool = \"default\"\n";
    let before = fresh(&format!("{POOL}{snat}"));
    let inside = nat_common::flow::Tuple {
        src: ip("10.1.0.5"),
        dst: ip("203.0.113.1"),
        sport: Port::new(4000),
        dport: Port::new(443),
    };
    let key = nat_common::flow::FlowKey::new(inside, proto::TCP, 0);
    let outside = nat_common::flow::Tuple { src: ip("198.51.100.10"), ..inside };
    let zeroed: SessionImage = bytemuck::Zeroable::zeroed();
    let session = SessionImage { tuple: outside, flags: flags::OUTBOUND, ..zeroed };
    let allowed = |rest: &str| is_allowed(&compiled(&config(rest), &before), &key, &session);
    assert!(allowed(&format!("{POOL}{snat}")));
    assert!(allowed(&format!("{POOL}{snat}[timeouts]\nudp = \"30s\"\n")));
    assert!(!allowed(POOL), "its source is no longer translated");
    assert!(
        !allowed(&format!("{POOL}ports = \"5000-6000\"\n{snat}")),
        "its port is no longer ours"
    );
    assert!(!allowed(&format!("{POOL}{snat}exempt = [\"203.0.113.0/24\"]\n")));
    let elsewhere = POOL.replace("198.51.100.10", "198.51.100.11");
    assert!(!allowed(&format!("{elsewhere}{snat}")), "its address is gone");
    let taken = "[[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.10:4000\"\n\
                 private = \"10.1.0.6:4000\"\n";
    assert!(!allowed(&format!("{POOL}{snat}{taken}")), "its port is forwarded now");
    let forwarded = SessionImage { flags: flags::OUTBOUND | flags::FORWARD, ..session };
    let to_it = taken.replace("10.1.0.6", "10.1.0.5");
    let contents = compiled(&config(&format!("{POOL}{to_it}")), &before);
    assert!(is_allowed(&contents, &key, &forwarded));
}
