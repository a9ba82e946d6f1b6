//! The flow cache in the kernel, while it changes its size.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData};
use nat_common::{
    flow::{FlowKey, Tuple},
    host::packet::{Packet, seen},
    maps,
    net::{Ip4, Port, proto},
    session::SessionImage,
    stage::request,
};
use nat_tests::{
    generator::{REMOTE, one_pool},
    kernel::{Arms, Kernel, action},
};
use nat_userspace::datapath::Fit;

/// Of a cache for so many sessions a part is used at first.
const CAPACITY: u32 = 100_000;
/// More sessions than it has room for.
const MANY: u32 = 16_400;
/// Flows that go on meanwhile.
const BUSY: u32 = 50;

fn kernel() -> Result<Kernel> {
    Kernel::start(Arms::Two, "", &one_pool(""), CAPACITY)
}

/// All from different hosts, towards one remote endpoint.
fn packet(number: u32) -> Packet {
    Packet { data: Vec::new(), ..Packet::udp((host(number), 5000), (REMOTE, 53)) }
}

fn host(number: u32) -> Ip4 {
    Ip4::from_u32(Ip4::new([10, 1, 0, 0]).to_u32() + number)
}

fn key(number: u32) -> FlowKey {
    let (sport, dport) = (Port::new(5000), Port::new(53));
    FlowKey::new(Tuple { src: host(number), dst: REMOTE, sport, dport }, proto::UDP, 0)
}

/// What was sent, and by which port it left.
#[derive(Default)]
struct Sent(BTreeMap<u32, (u64, u16)>);

impl Sent {
    /// Sends one packet of each of these flows; all leave by the port of their first.
    fn send(&mut self, kernel: &Kernel, flows: impl Iterator<Item = u32>) -> Result<()> {
        for number in flows {
            let run = kernel.receive(kernel.inside, &packet(number).frame())?;
            assert_eq!(run.action, action::REDIRECT, "flow {number}");
            let (packets, port) = self.0.entry(number).or_insert((0, seen(&run.frame).sport));
            assert_eq!(*port, seen(&run.frame).sport, "flow {number}");
            *packets += 1;
        }
        Ok(())
    }

    /// Every session has counted what was sent, as the sessions tell it together with the cache.
    fn is_counted(&self, kernel: &Kernel) -> Result<()> {
        let told = kernel.sessions()?;
        let told: BTreeMap<FlowKey, u64> =
            told.iter().map(|(key, session)| (*key, session.packets)).collect();
        for (number, (packets, _)) in &self.0 {
            assert_eq!(told.get(&key(*number)), Some(packets), "flow {number}");
        }
        Ok(())
    }

    /// The same by the session table alone.
    fn is_settled(&self, kernel: &Kernel) -> Result<()> {
        let map = MapData::from_pin(kernel.directory().join(maps::SESSIONS))?;
        let table: HashMap<_, [u8; 16], [u8; 64]> = Map::from_map_data(map)?.try_into()?;
        for (number, (packets, _)) in &self.0 {
            let session: SessionImage =
                bytemuck::cast(table.get(&bytemuck::cast(key(*number)), 0)?);
            assert_eq!(session.packets, *packets, "flow {number}");
        }
        Ok(())
    }
}

/// A gateway with many sessions, of which some are in the cache.
fn filled(sent: &mut Sent) -> Result<Kernel> {
    let kernel = kernel()?;
    for _ in 0..3 {
        sent.send(&kernel, 0..BUSY)?;
    }
    sent.send(&kernel, BUSY..MANY)?;
    Ok(kernel)
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn while_the_cache_changes_its_size_every_flow_goes_on_and_every_packet_is_counted() -> Result<()> {
    let mut sent = Sent::default();
    let mut kernel = filled(&mut sent)?;
    let (few, all) = kernel.datapath.cache_slots();
    assert!(few < all, "{few} of {all}");

    let mut fit = Fit::new(&kernel.datapath);
    let mut steps = 0;
    while fit.step(&mut kernel.datapath)? {
        steps += 1;
        if kernel.datapath.cache_slots().0 == few {
            sent.send(&kernel, 0..BUSY)?;
            sent.send(&kernel, 0..BUSY)?;
        }
    }
    assert!(steps > 1);
    assert_eq!(kernel.datapath.cache_slots(), (all, all));
    sent.is_settled(&kernel)?;
    sent.send(&kernel, 0..MANY)?;
    sent.send(&kernel, 0..MANY)?;
    sent.is_counted(&kernel)?;

    let ended: Vec<FlowKey> = (BUSY..MANY).map(key).collect();
    assert_eq!(kernel.datapath.reap(request::END, &ended)?, MANY - BUSY);
    sent.0.retain(|number, _| *number < BUSY);
    let mut fit = Fit::new(&kernel.datapath).with_patience(Duration::ZERO);
    while fit.step(&mut kernel.datapath)? {
        if kernel.datapath.cache_slots().0 == all {
            sent.send(&kernel, 0..BUSY)?;
        }
    }
    assert_eq!(kernel.datapath.cache_slots(), (few, all));
    sent.is_settled(&kernel)?;
    sent.send(&kernel, 0..BUSY)?;
    sent.is_counted(&kernel)
}

/// A gateway with many sessions whose cache has just got another size, and what is between the steps to that.
fn changed(sent: &mut Sent, between: impl Fn(&Kernel, &mut Sent) -> Result<()>) -> Result<Kernel> {
    let mut kernel = filled(sent)?;
    let (few, _) = kernel.datapath.cache_slots();
    let mut fit = Fit::new(&kernel.datapath);
    while kernel.datapath.cache_slots().0 == few {
        between(&kernel, sent)?;
        assert!(fit.step(&mut kernel.datapath)?);
    }
    Ok(kernel)
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn sessions_are_up_to_date_when_another_size_begins_to_be_used() -> Result<()> {
    let mut sent = Sent::default();
    let kernel = changed(&mut sent, |_, _| Ok(()))?;
    sent.is_settled(&kernel)
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn a_change_that_a_daemon_left_half_done_is_finished_by_the_next() -> Result<()> {
    let mut sent = Sent::default();
    let mut kernel = changed(&mut sent, |kernel, sent| sent.send(kernel, 0..BUSY))?;
    let mut fit = Fit::new(&kernel.datapath);
    while fit.step(&mut kernel.datapath)? {}
    sent.is_counted(&kernel)
}
