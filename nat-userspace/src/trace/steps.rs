//! The dataplane's answers as steps that people read.

use std::net::Ipv4Addr;

use nat_common::{
    flow::Tuple,
    maps::STAGE_PROGRAMS,
    net::{Ip4, Mac, Port},
    rules::host_address,
    session::{NextHop, State, flags},
    trace::{Log, Note, inserted, kind, route},
    verdict::Verdict,
};

use crate::api::trace::{Leaving, PacketText, StepKind, Trace, TraceStep, TraceVerdict};
use crate::config::Role;

/// What numbers of the dataplane are called.
pub trait Names {
    fn interface(&self, ifindex: u32) -> String;
    /// By its index in the dataplane.
    fn pool(&self, index: u32) -> String;
    /// The `[[snat]]` entry that covers a source, such as "10.0.0.0/16".
    fn rule(&self, source: Ipv4Addr) -> String;
}

/// Puts an answer together. `leaves`: the frame as it would leave.
#[must_use]
pub fn explain(
    interface: (String, Role),
    packet: PacketText,
    log: &Log,
    leaves: Option<Leaving>,
    names: &impl Names,
) -> Trace {
    let (interface, role) = interface;
    let mut story = Story { steps: Vec::new(), stage: "fast".to_owned(), names };
    story.tell(
        StepKind::Parse,
        format!(
            "{} {} to {}, {} bytes, TTL {}, received on {interface} ({role})",
            packet.protocol, packet.from, packet.to, packet.length, packet.ttl
        ),
    );
    let count = (log.count as usize).min(Log::NOTES);
    let notes = &log.notes[..count];
    for (index, note) in notes.iter().enumerate() {
        // Later stages ask again what earlier ones have asked.
        let asked_before = |earlier: &Note| {
            (earlier.kind, earlier.asked, earlier.answer, earlier.number, earlier.found)
                == (note.kind, note.asked, note.answer, note.number, note.found)
        };
        if note.kind == kind::STAGE || !notes[..index].iter().any(asked_before) {
            story.note(note);
        }
    }
    if count == Log::NOTES {
        story.tell(StepKind::Port, "more steps followed than are kept".to_owned());
    }
    let verdict = log.verdict();
    let reason = match verdict {
        Some(Verdict::Drop(reason)) => Some(reason),
        _ => None,
    };
    let (verdict, text) = match (verdict, &leaves) {
        (Some(Verdict::ToDestination), Some(leaves)) => {
            (TraceVerdict::ToDestination, leaving("to the destination", leaves))
        }
        (Some(Verdict::ToDestination), None) => {
            (TraceVerdict::ToDestination, "to the destination".to_owned())
        }
        (Some(Verdict::ToSource), Some(leaves)) => {
            (TraceVerdict::ToSource, leaving("to the private side", leaves))
        }
        (Some(Verdict::ToSource), None) => {
            (TraceVerdict::ToSource, "to the private side".to_owned())
        }
        (Some(Verdict::ToHost), _) => {
            (TraceVerdict::ToHost, "left to the host's own network stack".to_owned())
        }
        (Some(Verdict::Answered), Some(leaves)) => {
            (TraceVerdict::Answered, leaving("answered by the gateway", leaves))
        }
        (Some(Verdict::Answered), None) => {
            (TraceVerdict::Answered, "answered by the gateway".to_owned())
        }
        (Some(Verdict::Held), _) => {
            (TraceVerdict::Held, "kept by the daemon until it can go on".to_owned())
        }
        (Some(Verdict::Drop(reason)), _) => {
            (TraceVerdict::Drop, format!("dropped: {}: {}", reason.name(), reason.meaning()))
        }
        (None, _) => (TraceVerdict::Drop, "the dataplane gave no verdict".to_owned()),
    };
    story.tell(StepKind::Verdict, text);
    Trace {
        interface,
        role,
        packet,
        steps: story.steps,
        verdict,
        reason: reason.map(|reason| reason.name().to_owned()),
        meaning: reason.map(|reason| reason.meaning().to_owned()),
        leaves,
    }
}

fn leaving(what: &str, leaves: &Leaving) -> String {
    let Leaving { interface, next_hop, packet } = leaves;
    let PacketText { protocol, from, to, ttl, .. } = packet;
    format!("{what}: {protocol} {from} to {to}, TTL {ttl}, out of {interface} to {next_hop}")
}

struct Story<'a, N> {
    steps: Vec<TraceStep>,
    stage: String,
    names: &'a N,
}

impl<N: Names> Story<'_, N> {
    fn tell(&mut self, step: StepKind, text: String) {
        self.steps.push(TraceStep { step, stage: self.stage.clone(), text });
    }

    fn note(&mut self, note: &Note) {
        let Note { asked, found, number, more, .. } = *note;
        let yes = note.answer != 0;
        let (step, text) = match note.kind {
            kind::STAGE => {
                let program = STAGE_PROGRAMS.iter().find(|(stage, _)| *stage == number);
                let name = program.map_or("?", |(_, name)| name.trim_start_matches("natgw_"));
                self.stage = name.to_owned();
                return;
            }
            kind::SESSION if yes => (
                StepKind::Session,
                format!(
                    "a session that is {}: {} becomes {}",
                    State::from_u8(number as u8).name(),
                    way(asked),
                    way(found)
                ),
            ),
            kind::SESSION => (StepKind::Session, format!("no session of {}", way(asked))),
            kind::SESSION_NEW => new_session(note),
            kind::SESSION_END => (StepKind::Session, format!("the session of {} ends", way(asked))),
            kind::BINDING if yes => (
                StepKind::Binding,
                format!("{} is bound to {}", end(asked.src, asked.sport), source(found)),
            ),
            kind::BINDING => {
                (StepKind::Binding, format!("{} has no binding", end(asked.src, asked.sport)))
            }
            kind::BINDING_NEW if note.answer == inserted::DONE => (
                StepKind::Binding,
                format!("{} is bound to {} from now on", source(asked), source(found)),
            ),
            kind::BINDING_NEW => (StepKind::Binding, format!("{} is bound already", source(asked))),
            kind::PERMIT if yes => (
                StepKind::Filter,
                format!("{} has been sent to from {} before", asked.src, destination(asked)),
            ),
            kind::PERMIT => (
                StepKind::Filter,
                format!("{} has not been sent to from {}", asked.src, destination(asked)),
            ),
            kind::RULE if yes => (
                StepKind::Rule,
                format!(
                    "the snat rule for {} covers {}: pool {}",
                    self.names.rule(asked.src.into()),
                    asked.src,
                    self.names.pool(more)
                ),
            ),
            kind::RULE => (StepKind::Rule, format!("no snat rule covers {}", asked.src)),
            kind::EXEMPT if yes => {
                (StepKind::Rule, format!("{} is exempt from the rule", asked.dst))
            }
            kind::FORWARD if yes => (
                StepKind::Forward,
                format!("{} is forwarded to {}", destination(asked), destination(found)),
            ),
            kind::FORWARD if self.stage == "inbound" => {
                (StepKind::Forward, format!("{} is not forwarded", destination(asked)))
            }
            kind::ONE_TO_ONE if yes => {
                (StepKind::Rule, format!("{} is mapped one to one to {}", asked.src, found.src))
            }
            kind::PUBLIC if yes => {
                (StepKind::Address, format!("{} is a public address of this gateway", asked.dst))
            }
            kind::HOST_ADDRESS if note.answer & host_address::OWNED != 0 => {
                (StepKind::Address, format!("{} is an address of the host itself", asked.dst))
            }
            kind::HOST_ADDRESS if yes => {
                (StepKind::Address, format!("{} is a broadcast address", asked.dst))
            }
            kind::SOCKET if yes => {
                (StepKind::Port, format!("a socket of the host has {}", destination(asked)))
            }
            kind::BUSY if yes => (
                StepKind::Port,
                format!(
                    "the free ports of {} towards {} are tracked one by one",
                    asked.src,
                    destination(asked)
                ),
            ),
            kind::FRAGMENT if yes => (StepKind::Fragment, "its first fragment was seen".to_owned()),
            kind::FRAGMENT => (StepKind::Fragment, "its first fragment was not seen".to_owned()),
            kind::ROUTE => return self.route(note),
            _ => return,
        };
        self.tell(step, text);
    }

    fn route(&mut self, note: &Note) {
        let to = note.asked.dst;
        match note.answer {
            route::HOP => {
                let interface = self.names.interface(note.number);
                let mtu = match note.more {
                    0 => String::new(),
                    mtu => format!(", MTU {mtu}"),
                };
                self.tell(StepKind::Route, format!("to {to}: out of {interface}{mtu}"));
                let mac = Mac(NextHop(note.next).mac());
                self.tell(StepKind::NextHop, format!("{mac} on {interface}"));
            }
            route::NO_NEIGHBOUR => {
                let interface = self.names.interface(note.number);
                let gateway = Ipv4Addr::from(note.next as u32);
                self.tell(StepKind::Route, format!("to {to}: out of {interface}"));
                self.tell(
                    StepKind::NextHop,
                    format!("{gateway} on {interface} has no known Ethernet address yet"),
                );
            }
            route::TOO_BIG => self.tell(
                StepKind::Route,
                format!("to {to}: larger than the MTU of the way, {}", note.more),
            ),
            _ => self.tell(
                StepKind::Route,
                format!("to {to}: the host itself, or no route that leads through"),
            ),
        }
    }
}

/// The inbound half is the reservation of a port, the outbound one completes the session.
fn new_session(note: &Note) -> (StepKind, String) {
    let Note { asked, found, answer, more, .. } = *note;
    let outbound = more as u8 & flags::OUTBOUND != 0;
    match answer {
        inserted::FULL => (StepKind::Session, "the session table is full".to_owned()),
        inserted::EXISTS if outbound => {
            (StepKind::Session, format!("{} has a session already", way(asked)))
        }
        inserted::EXISTS => {
            (StepKind::Port, format!("{} is taken towards {}", destination(asked), source(asked)))
        }
        _ if outbound => {
            (StepKind::Session, format!("a new session: {} becomes {}", way(asked), way(found)))
        }
        _ => (
            StepKind::Port,
            format!("{} is free towards {}: taken", destination(asked), source(asked)),
        ),
    }
}

fn way(tuple: Tuple) -> String {
    format!("{} to {}", source(tuple), destination(tuple))
}

fn source(tuple: Tuple) -> String {
    end(tuple.src, tuple.sport)
}

fn destination(tuple: Tuple) -> String {
    end(tuple.dst, tuple.dport)
}

fn end(address: Ip4, port: Port) -> String {
    format!("{address}:{}", port.get())
}
