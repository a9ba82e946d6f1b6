//! What a traced packet meets on its way (`natgw trace`): written by the dataplane's second
//! binding, which runs the same stages and changes nothing, and read by the daemon.

use bytemuck::{Pod, Zeroable};

use crate::{
    flow::Tuple,
    stage::{Out, Outcome, Side},
    verdict::Verdict,
};

/// One thing that a stage asked, and the answer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Note {
    /// See [`kind`].
    pub kind: u32,
    /// By kind; of a question 0 is "no".
    pub answer: u32,
    /// What was asked for.
    pub asked: Tuple,
    /// What was found.
    pub found: Tuple,
    /// By kind.
    pub number: u32,
    pub more: u32,
    /// Of a route: the next hop's MAC address as `NextHop` has it, or its IP address as a number.
    pub next: u64,
}

/// The numbers are between one object and the daemon that carries it: free to change.
pub mod kind {
    /// The packet goes on to the stage `number`.
    pub const STAGE: u32 = 1;
    /// Session: key in `asked`; translation in `found`, state in `number`, flags in `more`.
    pub const SESSION: u32 = 2;
    /// A new entry of the session table: `answer` of [`inserted`](super::inserted); flags in `more`.
    pub const SESSION_NEW: u32 = 3;
    pub const SESSION_END: u32 = 4;
    /// Binding of the endpoint in `asked.src`; inbound or not in `number`; `found.src` is the other side.
    pub const BINDING: u32 = 5;
    pub const BINDING_NEW: u32 = 6;
    /// Whether a binding has sent to `asked.src` before.
    pub const PERMIT: u32 = 7;
    /// snat rule `number` of the source `asked.src`; pool in `more`.
    pub const RULE: u32 = 8;
    /// Whether rule `number` exempts `asked.dst`.
    pub const EXEMPT: u32 = 9;
    /// Forward of `asked.dst` to `found.dst`.
    pub const FORWARD: u32 = 10;
    /// One-to-one mapping of `asked.src` to `found.src`.
    pub const ONE_TO_ONE: u32 = 11;
    /// Whether `asked.dst` is a public address of the gateway.
    pub const PUBLIC: u32 = 12;
    /// Whether `asked.dst` is an address of the host; flags in `number`.
    pub const HOST_ADDRESS: u32 = 13;
    /// Pool `number`.
    pub const POOL: u32 = 14;
    /// Private host `asked.src` in pool `number`: its sessions of all protocols in `more`.
    pub const HOST: u32 = 15;
    /// Whether a socket of the host claims `asked`.
    pub const SOCKET: u32 = 16;
    /// Route to `asked.dst`: `answer` of [`route`](super::route), interface in `number`, MTU in
    /// `more`, next hop in `next`.
    pub const ROUTE: u32 = 17;
    /// Whether the free ports towards `asked` are tracked one by one.
    pub const BUSY: u32 = 18;
    /// Whether the first fragment of this datagram was seen.
    pub const FRAGMENT: u32 = 19;
}

pub mod inserted {
    pub const FULL: u32 = 0;
    pub const DONE: u32 = 1;
    pub const EXISTS: u32 = 2;
}

pub mod route {
    pub const LOCAL: u32 = 0;
    pub const HOP: u32 = 1;
    pub const NO_NEIGHBOUR: u32 = 2;
    pub const TOO_BIG: u32 = 3;
}

/// What is noted of one packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Log {
    /// Notes that were made; those beyond [`Log::NOTES`] are missing.
    pub count: u32,
    /// Not 0: the session table has no room, says the daemon.
    pub full: u32,
    /// See [`Log::verdict`]; set once at the end.
    pub verdict: u32,
    /// Not 0: from the private side.
    pub from_source: u32,
    /// IP total length as received.
    pub bytes: u32,
    /// Slot of the interface that it leaves by, plus one.
    pub out: u32,
    pub notes: [Note; 128],
}

impl Log {
    pub const NOTES: usize = 128;

    /// How a packet's way ended; `Out::Back` is `back`, the slot of the receiving interface.
    #[inline(always)]
    pub fn finish(&mut self, outcome: &Outcome, verdict: Verdict, back: u32) {
        self.verdict = verdict.code();
        self.from_source = (outcome.side == Side::Source) as u32;
        self.bytes = u32::from(outcome.bytes);
        self.out = match outcome.out {
            Out::None => 0,
            Out::Slot(slot) => u32::from(slot) + 1,
            Out::Back => back + 1,
        };
    }

    /// `None`: the packet's way did not end, which no packet's does.
    pub const fn verdict(&self) -> Option<Verdict> {
        Verdict::from_code(self.verdict)
    }
}
