//! The packet trait over a socket buffer.
//!
//! A buffer may be several packets that the kernel cuts later (GSO), its data may lie in pages that no
//! program reaches before they are pulled, and a checksum may be only the pseudo-header's sum, which
//! the kernel or a device completes (`CHECKSUM_PARTIAL`).

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{
        bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail,
        bpf_skb_change_type, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use nat_common::{
    checksum::{Delta, Sum},
    env::{Packet, SUMMED, Segments},
    net::{Mac, proto},
    stage::Handoff,
    wire::{Ethernet, Ipv4, Tcp, Udp},
};

const ETHERNET: usize = size_of::<Ethernet>();
/// The longest header of IPv4.
const LONGEST: usize = 60;
/// Headers, and what an ICMP error quotes.
const HEADERS: u32 = 192;
/// What an answer quotes: a header with all its options, and eight bytes.
const QUOTE: usize = LONGEST + 8;
/// What is taken off so that the place of a checksum yet to be completed comes to lie before the
/// frame, and the shortest frame that leaves an IP header behind it, as the kernel wants.
const CUT: usize = ETHERNET + LONGEST + 2;
const CUTTABLE: usize = ETHERNET + CUT + Ipv4::MIN_LEN;
const PACKET_HOST: u32 = 0;

pub(crate) struct Frame {
    pub(crate) ctx: TcContext,
    /// Interface that the frame came from, at first.
    pub(crate) ingress: u32,
    /// Not 0: it has been in the slow path since. See `hold::returned`.
    pub(crate) returned: u32,
    /// As in `Handoff`.
    packets: u32,
    bytes: u32,
    largest: u32,
}

impl Frame {
    /// As a stage finds it.
    #[inline(always)]
    pub(crate) fn new(ctx: TcContext) -> Self {
        // SAFETY: the context is the one the kernel gave.
        let ingress = unsafe { (*ctx.skb.skb).ifindex };
        Self { ctx, ingress, returned: 0, packets: 0, bytes: 0, largest: 0 }
    }

    /// As it was received: its headers are brought where programs reach them, and it is measured.
    #[inline(always)]
    pub(crate) fn received(ctx: TcContext) -> Self {
        let mut frame = Self::new(ctx);
        let have = (frame.ctx.data_end() - frame.ctx.data()) as u32;
        if have < HEADERS && frame.ctx.len() > have {
            frame.pull_headers(have);
        }
        // SAFETY: the context is the one the kernel gave.
        let size = unsafe { (*frame.ctx.skb.skb).gso_size };
        if size != 0 {
            frame.measure(size);
        }
        frame
    }

    /// Pulling copies, so that of a TCP segment only its headers are pulled.
    #[inline(always)]
    fn pull_headers(&mut self, have: u32) {
        let wanted = match self.tcp_headers() {
            Some(headers) => (ETHERNET + headers) as u32,
            None => HEADERS,
        };
        if have < wanted {
            self.pull(wanted);
        }
    }

    #[inline(always)]
    fn pull(&self, wanted: u32) {
        let len = self.ctx.len();
        // SAFETY: the helper checks its arguments; all packet pointers are refetched after.
        unsafe { bpf_skb_pull_data(self.skb(), if wanted < len { wanted } else { len }) };
    }

    /// Bytes of the IP and TCP headers, if they are at hand.
    #[inline(always)]
    fn tcp_headers(&mut self) -> Option<usize> {
        let ip = *self.get::<Ipv4>(ETHERNET)?;
        if ip.protocol != proto::TCP {
            return None;
        }
        let header = ip.header_len() & 0x3c;
        let offset = self.get::<Tcp>(ETHERNET + header)?.offset;
        Some(header + usize::from((offset >> 4) << 2))
    }

    /// `size`: bytes behind the headers of each packet but the last.
    #[inline(always)]
    fn measure(&mut self, size: u32) {
        let headers = match self.tcp_headers() {
            Some(headers) => headers as u32,
            None => (Ipv4::MIN_LEN + size_of::<Udp>()) as u32,
        };
        let Some(ip) = self.get::<Ipv4>(ETHERNET) else { return };
        let length = u32::from(ip.total_len());
        if length <= headers + size {
            return;
        }
        let packets = (length - headers + size - 1) / size;
        self.packets = packets;
        self.bytes = length + (packets - 1) * headers;
        self.largest = headers + size;
    }

    /// For how many packets and bytes it counts, `bytes` being those of the packet as it is.
    #[inline(always)]
    pub(crate) fn weight(&self, bytes: u16) -> (u64, u64) {
        match self.packets {
            0 => (1, u64::from(bytes)),
            // Of what is no IP packet there are none.
            packets if bytes == 0 => (u64::from(packets), 0),
            packets => (u64::from(packets), u64::from(self.bytes)),
        }
    }

    /// What an earlier program has found.
    #[inline(always)]
    pub(crate) fn resume(&mut self, handoff: &Handoff) {
        self.ingress = handoff.ingress;
        self.returned = handoff.returned;
        self.packets = handoff.packets;
        self.bytes = handoff.bytes;
        self.largest = handoff.largest;
    }

    #[inline(always)]
    pub(crate) fn leave(&self, handoff: &mut Handoff) {
        handoff.ingress = self.ingress;
        handoff.returned = self.returned;
        handoff.packets = self.packets;
        handoff.bytes = self.bytes;
        handoff.largest = self.largest;
    }

    /// Whether a VLAN tag was taken off the frame, which the stack has kept.
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        // SAFETY: the context is the one the kernel gave.
        unsafe { (*self.skb()).vlan_present != 0 }
    }

    /// Has the host take the frame, which was addressed to another interface of it.
    #[inline(always)]
    pub(crate) fn address_to(&mut self, mac: Mac) {
        if let Some(ethernet) = self.get::<Ethernet>(0) {
            ethernet.dst = mac;
        }
        // SAFETY: the context is the one the kernel gave.
        unsafe { bpf_skb_change_type(self.skb(), PACKET_HOST) };
    }

    #[inline(always)]
    fn skb(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    /// Changes a checksum as the kernel does where the state of the buffer decides what it means.
    #[inline(always)]
    fn replace(&self, offset: usize, by: Delta, flags: u32) -> Option<()> {
        // Also where it changes nothing: each way past the call doubles the verifier's work.
        let by = by.to_raw();
        let flags = u64::from(flags);
        // SAFETY: the helper checks its arguments; all packet pointers are refetched after.
        let result =
            unsafe { bpf_l4_csum_replace(self.skb(), offset as u32, 0, u64::from(by), flags) };
        (result == 0).then_some(())
    }
}

impl Packet for Frame {
    const NOTED: bool = true;

    #[inline(always)]
    fn segments(&self) -> Option<Segments> {
        if self.packets == 0 {
            return None;
        }
        let largest = if self.largest > 0xffff { 0xffff } else { self.largest as u16 };
        Some(Segments { packets: self.packets, bytes: self.bytes, largest })
    }

    /// A checksum that is pending does not follow a change of what it covers.
    #[inline(always)]
    fn is_pending(&mut self, offset: usize) -> bool {
        let Some(before) = self.get::<[u8; 2]>(offset).copied() else { return false };
        if self.replace(offset, Delta::from_raw(1), 0).is_none() {
            return false;
        }
        match self.get::<[u8; 2]>(offset) {
            Some(after) if *after != before => {
                *after = before;
                false
            }
            Some(_) => true,
            None => false,
        }
    }

    #[inline(always)]
    fn correct(
        &mut self,
        offset: usize,
        all: Delta,
        pseudo: Delta,
        zero_is_none: bool,
    ) -> Option<()> {
        let flags = if zero_is_none { BPF_F_MARK_MANGLED_0 } else { 0 };
        self.replace(offset, all.and(pseudo.inverse()), flags)?;
        self.replace(offset, pseudo, flags | BPF_F_PSEUDO_HDR)
    }

    #[inline(always)]
    fn get<T: bytemuck::Pod>(&mut self, offset: usize) -> Option<&mut T> {
        self.header(offset)
    }

    #[inline(always)]
    fn sum(&mut self, offset: usize, len: usize) -> Option<Sum> {
        if len <= SUMMED && self.ctx.data_end() - self.ctx.data() < offset + len {
            self.pull((offset + len) as u32);
        }
        self.sum_of(offset, len)
    }

    #[inline(always)]
    fn len(&mut self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn holds(&mut self, len: usize) -> bool {
        self.ctx.len() as usize >= len
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.ingress
    }

    #[inline(always)]
    fn extend(&mut self, front: usize) -> bool {
        // SAFETY: the helper checks its arguments; all packet pointers are refetched after.
        unsafe { bpf_skb_change_head(self.skb(), front as u32, 0) == 0 }
    }

    /// The kernel takes bytes from behind the Ethernet header only, so that one moves.
    #[inline(always)]
    fn strip(&mut self, front: usize) -> bool {
        let Some(ethernet) = self.get::<Ethernet>(front).copied() else { return false };
        // SAFETY: the helper checks its arguments; all packet pointers are refetched after.
        if unsafe { bpf_skb_adjust_room(self.skb(), -(front as i32), BPF_ADJ_ROOM_MAC, 0) } != 0 {
            return false;
        }
        match self.get::<Ethernet>(0) {
            Some(there) => {
                *there = ethernet;
                true
            }
            None => false,
        }
    }

    /// The new packet must not be cut or completed by what was noted of the old one. Trimming ends
    /// the first; the second ends when bytes are written while the noted place lies before the
    /// frame.
    #[inline(always)]
    fn reshape(&mut self, front: usize, len: usize) -> bool {
        const WORDS: usize = QUOTE / 4;
        let mut quote = [[0_u8; 4]; WORDS];
        if front != 0 {
            for (index, word) in quote.iter_mut().enumerate() {
                match self.get::<[u8; 4]>(ETHERNET + 4 * index) {
                    Some(there) => *word = *there,
                    None => break,
                }
            }
        }
        let skb = self.skb();
        let room = (front + ETHERNET + QUOTE) as u32;
        // SAFETY: the helpers check their arguments; all packet pointers are refetched after.
        unsafe {
            bpf_skb_change_tail(skb, CUTTABLE as u32, 0) == 0
                && bpf_skb_adjust_room(skb, -(CUT as i32), BPF_ADJ_ROOM_MAC, 0) == 0
                && bpf_skb_change_tail(skb, room, 0) == 0
                && bpf_skb_store_bytes(
                    skb,
                    (front + ETHERNET) as u32,
                    quote.as_ptr().cast(),
                    QUOTE as u32,
                    u64::from(BPF_F_RECOMPUTE_CSUM),
                ) == 0
                && bpf_skb_change_tail(skb, (front + len) as u32, 0) == 0
        }
    }
}
