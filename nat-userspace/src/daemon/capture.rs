//! `natgw capture`: other programs in the place of the gateway's for a time, and what they show,
//! written as it comes.

use std::{
    collections::BTreeMap,
    net::SocketAddrV4,
    os::fd::AsFd as _,
    sync::TryLockError,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use nat_common::{
    capture::{SNAP, Wanted},
    flow::{FlowKey, Tuple},
    maps::INTERFACE_SLOTS,
    net::Port,
};
use nix::{
    poll::{PollFd, PollFlags, poll},
    time::{ClockId, clock_gettime},
};

use super::{control::Controller, control::failed, gateway::Gateway};
use crate::{
    api::{
        ControlError,
        capture::{CaptureRequest, Deliver},
        model::GatewayState,
    },
    capture::{Action, Captured, Headers, Interface, Pcapng, Shown, is_meant, join, verdict},
    datapath::{Capturer, Packets, SessionLookup},
};

/// Filters are about headers, so that these are kept even of shorter snapshots.
const HEADERS: u32 = 128;
/// Milliseconds that nothing may come before it is asked whether anybody still reads.
const LOOK: u16 = 100;
/// Of the file, sent at once.
const PIECE: usize = 64 * 1024;
/// How often the file says what was lost.
const TELL: Duration = Duration::from_secs(1);

impl Controller {
    pub(super) fn capture_packets(
        &self,
        request: &CaptureRequest,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), ControlError> {
        let _turn = match self.capturing.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(ControlError::Refused(
                    "another capture runs; end it first, there is room for one".to_owned(),
                ));
            }
        };
        let source = self.lock().datapath.capturer();
        // Loading takes about a second; the gateway goes on meanwhile.
        let (mut capturer, packets) = source.load().map_err(failed)?;
        capturer.want(wanted(request)).map_err(failed)?;
        let mut file = {
            let mut gateway = self.lock();
            if gateway.phase != GatewayState::Ready {
                return Err(ControlError::Refused("the gateway is about to end".to_owned()));
            }
            let file = File::open(&gateway, request, capturer.is_tc()).map_err(failed)?;
            let started = gateway.datapath.start_capture(&mut capturer);
            gateway.capture = Some(capturer);
            if let Err(error) = started {
                gateway.end_capture();
                return Err(failed(error));
            }
            log::info!("a capture runs: {request:?}");
            file
        };
        let result = self.show(&mut file, packets, deliver);
        self.lock().end_capture();
        log::info!("the capture has ended: {} packets, {} lost", file.packets, file.lost);
        result.map_err(failed)
    }

    /// Until there is enough, or nobody reads any more.
    fn show(&self, file: &mut File, mut packets: Packets, deliver: &mut Deliver<'_>) -> Result<()> {
        let duration = file.request.duration_ms.map(Duration::from_millis);
        let start = Instant::now();
        let mut told = start;
        let mut go_on = deliver(file.piece()).is_continue();
        while go_on {
            let mut descriptors = [PollFd::new(packets.as_fd(), PollFlags::POLLIN)];
            match poll(&mut descriptors, LOOK) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for packets"),
            }
            go_on = duration.is_none_or(|duration| start.elapsed() < duration);
            if !go_on || file.has_enough() {
                break;
            }
            // The daemon may end before the capture does.
            let Some(lost) = self.lock().capture.as_ref().map(Capturer::lost) else { break };
            file.lost = lost?;
            go_on = file.take(&mut packets, deliver)?;
            if go_on && told.elapsed() >= TELL {
                told = Instant::now();
                file.tell()?;
            }
            go_on &= deliver(file.piece()).is_continue() && !file.has_enough();
        }
        // What was shown before the gateway had its own programs again.
        if let Some(capturer) = self.lock().end_capture() {
            file.lost = capturer.lost()?;
        }
        file.take(&mut packets, deliver)?;
        file.tell()?;
        // The reader may be gone; then nobody wants the end.
        let _gone = deliver(file.piece());
        Ok(())
    }
}

impl Gateway {
    /// The gateway has its own programs again. The programs that showed packets, if there were any.
    pub(super) fn end_capture(&mut self) -> Option<Capturer> {
        let capturer = self.capture.take()?;
        if let Err(error) = self.datapath.end_capture() {
            log::error!("{error}; restart the gateway, which puts its programs back");
        }
        Some(capturer)
    }
}

/// What the dataplane need not bring is left out there.
fn wanted(request: &CaptureRequest) -> Wanted {
    let mut addresses = [request.private, request.remote, request.public].into_iter().flatten();
    // An ICMP error is about other addresses than its own.
    let mut next = || {
        let address = addresses.next().map(|filter| filter.address.into());
        address.unwrap_or(nat_common::net::Ip4::UNSPECIFIED)
    };
    Wanted {
        snap: snap(request).max(HEADERS),
        drops: u32::from(request.drops),
        protocol: 0,
        addresses: [next(), next(), next()],
    }
}

fn snap(request: &CaptureRequest) -> u32 {
    request.snaplen.unwrap_or(u32::MAX).clamp(1, SNAP as u32)
}

/// The file as it grows, and what is needed to name things in it.
struct File {
    request: CaptureRequest,
    /// The packets are shown on tc.
    tc: bool,
    pcapng: Pcapng<Vec<u8>>,
    lookup: SessionLookup,
    /// By index.
    interfaces: BTreeMap<u32, (u32, String)>,
    /// Wall clock at the monotonic clock's zero.
    origin: Duration,
    packets: u64,
    lost: u64,
}

impl File {
    fn open(gateway: &Gateway, request: &CaptureRequest, tc: bool) -> Result<Self> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let monotonic =
            clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot ask for the time")?;
        let mut pcapng = Pcapng::new(Vec::new(), snap(request))?;
        let mut interfaces = BTreeMap::new();
        for status in gateway.interface_statuses() {
            let port = gateway.ports.get(&status.name);
            let Some(known) = port.and_then(|port| port.known) else { continue };
            let description = format!("{}, {}", status.role, status.xdp_mode);
            let interface = Interface { name: status.name.clone(), description };
            let number = pcapng.interface(&interface)?;
            interfaces.insert(known.ifindex, (number, status.name));
        }
        Ok(Self {
            request: *request,
            tc,
            pcapng,
            lookup: gateway.datapath.session_lookup()?,
            interfaces,
            origin: wall.saturating_sub(monotonic.into()),
            packets: 0,
            lost: 0,
        })
    }

    fn has_enough(&self) -> bool {
        self.request.count.is_some_and(|count| self.packets >= count)
    }

    /// What is new in the file.
    fn piece(&mut self) -> Vec<u8> {
        std::mem::take(self.pcapng.out())
    }

    fn tell(&mut self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(self.pcapng.statistics(now, self.packets, self.lost)?)
    }

    /// Writes what is in the ring. False: nobody reads any more.
    fn take(&mut self, packets: &mut Packets, deliver: &mut Deliver<'_>) -> Result<bool> {
        while !self.has_enough()
            && let Some(item) = packets.next()
        {
            if let Some(captured) = Captured::read(&item) {
                self.write(&captured)?;
            }
            drop(item);
            if self.pcapng.out().len() >= PIECE && deliver(self.piece()).is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write(&mut self, captured: &Captured<'_>) -> Result<()> {
        let head = captured.head;
        let roles = join(captured, |came| session(&self.lookup, came));
        if !is_meant(&self.request, head.verdict, roles.as_ref()) {
            return Ok(());
        }
        self.packets += 1;
        let (interface, _) = self.interface(head.ingress)?;
        let leaves = match captured.left {
            [] => None,
            _ => Some(self.interface_in(head.out - 1)?),
        };
        let session = roles.map_or_else(|| "no IPv4".to_owned(), |roles| roles.to_string());
        let fate = verdict(head.verdict, leaves.as_ref().map(|(_, name)| name.as_str()));
        let many = match head.packets {
            0 | 1 => String::new(),
            packets => format!("{packets} packets in one; "),
        };
        let action =
            if self.tc { Action::Tc(head.action as i32) } else { Action::Xdp(head.action) };
        let back = if head.returned == 0 { "" } else { "from the slow path: " };
        let came = Shown {
            id: self.packets,
            time: self.origin + Duration::from_nanos(head.came),
            interface,
            frame: captured.came,
            length: head.came_length,
            comment: &format!("{back}{session}; {many}{fate}"),
            leaves: false,
            action,
        };
        self.pcapng.packet(&came)?;
        if let Some((interface, _)) = leaves {
            self.pcapng.packet(&Shown {
                time: self.origin + Duration::from_nanos(head.ended),
                interface,
                frame: captured.left,
                length: head.left_length,
                comment: &format!("{session}; {many}as it left"),
                leaves: true,
                ..came
            })?;
        }
        Ok(())
    }

    /// Its number in the file, and its name. One that was not there at first is named by its index.
    fn interface(&mut self, ifindex: u32) -> Result<(u32, String)> {
        if let Some(known) = self.interfaces.get(&ifindex) {
            return Ok(known.clone());
        }
        let name = format!("interface {ifindex}");
        let interface = Interface { name: name.clone(), description: "new".to_owned() };
        let number = self.pcapng.interface(&interface)?;
        self.interfaces.insert(ifindex, (number, name.clone()));
        Ok((number, name))
    }

    fn interface_in(&mut self, slot: u32) -> Result<(u32, String)> {
        let ifindex = self.interfaces.keys().copied().find(|it| it % INTERFACE_SLOTS == slot);
        self.interface(ifindex.unwrap_or(slot))
    }
}

/// The private and the public side of the session that a packet is of, if it is of one.
fn session(lookup: &SessionLookup, came: &Headers) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let tuple = Tuple {
        src: (*came.from.ip()).into(),
        dst: (*came.to.ip()).into(),
        sport: Port::new(came.from.port()),
        dport: Port::new(came.to.port()),
    };
    let entry = lookup.get(&FlowKey::new(tuple, came.protocol, 0)).ok().flatten()?;
    let Tuple { src, dst, sport, dport } = entry.tuple;
    Some(if entry.is_outbound() {
        (came.from, SocketAddrV4::new(src.into(), sport.get()))
    } else {
        (SocketAddrV4::new(dst.into(), dport.get()), came.to)
    })
}
