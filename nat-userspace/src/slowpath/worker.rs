//! The slow path at work: a loop over what the dataplane sends, the kernel's neighbours and the
//! clock.

use std::{
    collections::HashSet,
    fs::File,
    io,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nat_common::{
    net::Ip4,
    stage::hold::{Label, why},
    verdict::DropReason,
};
use tokio::{io::unix::AsyncFd, sync::oneshot, time::sleep_until};

use super::{
    held::Held,
    losses::Losses,
    queue::{Limits, Queue, Wait},
    split::split,
    tap,
};
use crate::{
    datapath::SlowPathView,
    netdev::{Changes, Neighbour, Netdev, Watch},
};

/// How often the notes of first fragments are looked for while something waits for one.
const LOOK: Duration = Duration::from_millis(2);
/// Datagrams that are looked for at each look.
const LOOKED_FOR: usize = 256;
/// Frames taken between two looks. More than 128,000 a second are a flood; what is too much is
/// lost on the device, which costs nothing here.
const TAKEN: usize = 256;
/// How often it is reckoned what was lost, and unresolved neighbours are looked up anew.
const RECKON: Duration = Duration::from_secs(1);

/// Of the device: the dummy address (RFC 7600). Where sources are checked by route
/// (`rp_filter`), even loosely, nothing is taken from an interface without an address.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

pub(super) struct Worker {
    view: SlowPathView,
    netdev: Netdev,
    queue: Queue,
    losses: Losses,
    /// Given up since the last report, by reason.
    given_up: Vec<(DropReason, u32)>,
}

/// Serves until told to stop; then everything that waits is given up.
pub(super) async fn run(
    view: SlowPathView,
    losses: Losses,
    ifindex: u32,
    tap: AsyncFd<File>,
    stop: oneshot::Receiver<()>,
) -> Result<()> {
    let netdev = Netdev::connect()?;
    if let Err(error) = netdev.number(ifindex, ADDRESS).await {
        log::warn!("fragments for the host itself may be lost: {error}");
    }
    let mut watch = Watch::open()?;
    let mut worker =
        Worker { view, netdev, queue: Queue::new(Limits::default()), losses, given_up: Vec::new() };
    let result = worker.serve(&tap, &mut watch, stop).await;
    worker.give_up_all(tap.get_ref());
    result
}

impl Worker {
    async fn serve(
        &mut self,
        tap: &AsyncFd<File>,
        watch: &mut Watch,
        mut stop: oneshot::Receiver<()>,
    ) -> Result<()> {
        let mut buffer = vec![0; tap::LONGEST];
        let mut changes = Changes::default();
        let mut reckoning = Instant::now();
        // Frames that may still be taken before the next look.
        let (mut look, mut quota) = (Instant::now(), TAKEN);
        loop {
            let now = Instant::now();
            if now >= look {
                look = now + LOOK;
                quota = TAKEN;
                self.look(tap.get_ref())?;
            }
            for packet in self.queue.expired(now) {
                if packet.label.why == why::SYN {
                    self.send(&packet.label, &packet.frame, tap.get_ref());
                } else {
                    self.give_up(packet.label.extra, packet.reason());
                }
            }
            if now >= reckoning {
                reckoning = now + RECKON;
                self.reckon(tap.get_ref()).await?;
            }
            self.report(tap.get_ref());

            let mut wake = reckoning;
            if self.queue.has_fragments() || quota == 0 {
                wake = wake.min(look);
            }
            if let Some(deadline) = self.queue.next_deadline() {
                wake = wake.min(deadline);
            }
            tokio::select! {
                biased;
                // The other end may also just be gone.
                _ = &mut stop => return Ok(()),
                event = watch.changes(&mut changes) => {
                    event?;
                    self.follow(std::mem::take(&mut changes), tap.get_ref()).await?;
                }
                ready = tap.readable(), if quota > 0 => {
                    let mut ready = ready.context("cannot wait for the slow path's device")?;
                    while quota > 0 {
                        let Some(length) = tap::receive(tap.get_ref(), &mut buffer)? else {
                            ready.clear_ready();
                            break;
                        };
                        quota -= 1;
                        if let Some(packet) = buffer.get(..length).and_then(Held::read) {
                            self.accept(packet, tap.get_ref()).await?;
                        }
                    }
                }
                () = sleep_until(wake.into()) => {}
            }
        }
    }

    async fn accept(&mut self, packet: Held, tap: &File) -> Result<()> {
        if packet.label.extra == 0 {
            self.losses.taken(1);
        }
        match packet.label.why {
            why::TOO_BIG => self.split(&packet, tap),
            why::FRAGMENT => {
                let key = packet.fragment_key(self.view.realm(packet.ingress())?);
                self.push(Wait::First(key), packet);
            }
            why::SYN => {
                self.push(Wait::Answer(packet.tuple()), packet);
            }
            why::NEIGHBOUR => {
                let (ifindex, address) = (packet.argument(), packet.label.gateway);
                if self.push(Wait::Neighbour { ifindex, address }, packet) {
                    self.resolve(ifindex, address, tap).await;
                }
            }
            other => {
                log::debug!("a packet was held for an unknown reason ({other})");
                self.give_up(packet.label.extra, DropReason::Internal);
            }
        }
        Ok(())
    }

    /// True where it is the first packet that waits for this.
    fn push(&mut self, wait: Wait, packet: Held) -> bool {
        let extra = packet.label.extra;
        match self.queue.push(wait, packet, Instant::now()) {
            Ok(first) => first,
            Err(reason) => {
                self.give_up(extra, reason);
                false
            }
        }
    }

    fn split(&mut self, packet: &Held, tap: &File) {
        let Some(pieces) = split(&packet.frame, packet.argument() as usize) else {
            return self.give_up(packet.label.extra, DropReason::FragmentationNeeded);
        };
        for (number, piece) in pieces.iter().enumerate() {
            let extra = packet.label.extra | u8::from(number > 0);
            self.send(&Label { extra, ..packet.label }, piece, tap);
        }
    }

    /// Has the kernel find the next hop, unless it has done so meanwhile.
    async fn resolve(&mut self, ifindex: u32, address: Ip4, tap: &File) {
        let address = Ipv4Addr::from(address);
        // Asked first: a permanent entry must not be touched.
        match self.netdev.neighbour(ifindex, address).await {
            Ok(Some(found)) if found.mac.is_some() => self.settle(&found, tap),
            Ok(_) => self.ask_for(ifindex, address, tap).await,
            Err(error) => {
                log::debug!("next hop {address} on interface {ifindex}: {error}");
                self.ask_for(ifindex, address, tap).await;
            }
        }
    }

    /// Something became of a next hop that is waited for.
    async fn check(&mut self, ifindex: u32, address: Ipv4Addr, tap: &File) {
        match self.netdev.neighbour(ifindex, address).await {
            Ok(Some(found)) => self.settle(&found, tap),
            // Forgotten since it was asked for.
            Ok(None) => self.ask_for(ifindex, address, tap).await,
            Err(error) => log::debug!("next hop {address} on interface {ifindex}: {error}"),
        }
    }

    async fn ask_for(&mut self, ifindex: u32, address: Ipv4Addr, tap: &File) {
        if let Err(error) = self.netdev.resolve(ifindex, address, false).await {
            log::debug!("next hop {address} on interface {ifindex}: {error}");
            let failed = Neighbour {
                ifindex,
                address,
                mac: None,
                permanent: false,
                stale: false,
                failed: true,
            };
            self.settle(&failed, tap);
        }
    }

    /// An event only says that something happened: it may be older than the request that a packet
    /// waits for the outcome of. So the kernel is asked what holds now.
    async fn follow(&mut self, changes: Changes, tap: &File) -> Result<()> {
        if changes.lost {
            self.look_up_neighbours(tap).await?;
        }
        let mut heard = HashSet::new();
        for Neighbour { ifindex, address, mac, failed, .. } in changes.neighbours {
            let wait = Wait::Neighbour { ifindex, address: address.into() };
            if (mac.is_some() || failed) && self.queue.waits(&wait) && heard.insert(wait) {
                self.check(ifindex, address, tap).await;
            }
        }
        Ok(())
    }

    /// For events that were lost.
    async fn look_up_neighbours(&mut self, tap: &File) -> Result<()> {
        if self.queue.neighbours().next().is_none() {
            return Ok(());
        }
        for neighbour in self.netdev.neighbours().await?.iter().filter(|it| it.mac.is_some()) {
            self.settle(neighbour, tap);
        }
        Ok(())
    }

    /// What waited for this next hop goes on, or is given up.
    fn settle(&mut self, neighbour: &Neighbour, tap: &File) {
        if neighbour.mac.is_none() && !neighbour.failed {
            return;
        }
        let wait =
            Wait::Neighbour { ifindex: neighbour.ifindex, address: neighbour.address.into() };
        for packet in self.queue.take(&wait) {
            if neighbour.mac.is_some() {
                self.send(&packet.label, &packet.frame, tap);
            } else {
                self.give_up(packet.label.extra, packet.reason());
            }
        }
    }

    fn look(&mut self, tap: &File) -> Result<()> {
        if !self.queue.has_fragments() {
            return Ok(());
        }
        let view = &self.view;
        for packet in self.queue.look(LOOKED_FOR, |key| view.first_passed(key))? {
            self.send(&packet.label, &packet.frame, tap);
        }
        Ok(())
    }

    /// Finds what was sent here and never came.
    async fn reckon(&mut self, tap: &File) -> Result<()> {
        let lost = self.losses.reckon(self.view.waiting()?);
        self.note(DropReason::SlowPathUnavailable, lost);
        self.look_up_neighbours(tap).await
    }

    fn send(&mut self, label: &Label, frame: &[u8], tap: &File) {
        if let Err(error) = tap::send(tap, bytemuck::bytes_of(label), frame) {
            log::debug!("cannot return a packet to the dataplane: {error}");
            self.give_up(label.extra, DropReason::SlowPathUnavailable);
        }
    }

    /// One more piece of a split packet is no packet of its own.
    fn give_up(&mut self, extra: u8, reason: DropReason) {
        self.note(reason, u32::from(extra == 0));
    }

    fn note(&mut self, reason: DropReason, packets: u32) {
        if packets == 0 {
            return;
        }
        match self.given_up.iter_mut().find(|(noted, _)| *noted == reason) {
            Some((_, count)) => *count = count.saturating_add(packets),
            None => self.given_up.push((reason, packets)),
        }
    }

    /// At the end: what waits here, and what waits to be taken.
    fn give_up_all(&mut self, tap: &File) {
        let mut packets = self.queue.drain();
        let mut buffer = vec![0; tap::LONGEST];
        while let Ok(Some(length)) = tap::receive(tap, &mut buffer) {
            packets.extend(buffer.get(..length).and_then(Held::read));
        }
        for packet in packets {
            self.give_up(packet.label.extra, DropReason::SlowPathUnavailable);
        }
        self.report(tap);
    }

    /// Has the dataplane count what was given up.
    fn report(&mut self, tap: &File) {
        self.given_up.retain(|&(reason, packets)| {
            let label = Label {
                magic: Label::MAGIC,
                reason: reason as u8 + 1,
                argument: packets.to_ne_bytes(),
                ..Label::default()
            };
            match tap::send(tap, bytemuck::bytes_of(&label), &[]) {
                Ok(()) => false,
                // Next time.
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        log::debug!("cannot report dropped packets: {error}");
                    }
                    true
                }
            }
        });
    }
}
