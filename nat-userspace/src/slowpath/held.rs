//! A packet as it came to the slow path: the dataplane's label, and the frame behind it.

use nat_common::{
    flow::Tuple,
    net::{Ip4, Port},
    stage::{
        FragmentKey,
        hold::{Label, why},
    },
    verdict::DropReason,
    wire::{Ethernet, Ipv4, Ports},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub label: Label,
    /// Without the label: Ethernet header first.
    pub frame: Vec<u8>,
    pub ip: Ipv4,
}

impl Held {
    /// `None`: nothing that the dataplane sends.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (label, frame) = bytes.split_at_checked(Label::LEN)?;
        let label: Label = bytemuck::try_pod_read_unaligned(label).ok()?;
        let ip = frame.get(size_of::<Ethernet>()..)?.get(..Ipv4::MIN_LEN)?;
        let ip: Ipv4 = bytemuck::try_pod_read_unaligned(ip).ok()?;
        (label.magic == Label::MAGIC).then(|| Self { label, frame: frame.to_vec(), ip })
    }

    #[must_use]
    pub fn ingress(&self) -> u32 {
        u32::from_ne_bytes(self.label.ingress)
    }

    #[must_use]
    pub fn argument(&self) -> u32 {
        u32::from_ne_bytes(self.label.argument)
    }

    /// Of the datagram that this is a fragment of.
    #[must_use]
    pub fn fragment_key(&self, realm: u8) -> FragmentKey {
        let Ipv4 { src, dst, id, protocol, .. } = self.ip;
        FragmentKey { src, dst, id, protocol, realm }
    }

    /// Addresses and ports, of a packet that has ports.
    #[must_use]
    pub fn tuple(&self) -> Tuple {
        let at = size_of::<Ethernet>() + self.ip.header_len();
        let ports = self.frame.get(at..at + size_of::<Ports>());
        let ports = ports.and_then(|bytes| bytemuck::try_pod_read_unaligned::<Ports>(bytes).ok());
        let (sport, dport) = ports.map_or((Port::ZERO, Port::ZERO), |ports| (ports.src, ports.dst));
        Tuple { src: self.ip.src, dst: self.ip.dst, sport, dport }
    }

    #[must_use]
    pub fn is_first_fragment(&self) -> bool {
        let bits = self.ip.fragment_bits();
        bits & Ipv4::OFFSET_MASK == 0 && bits & Ipv4::MORE_FRAGMENTS != 0
    }

    /// Place in the datagram, in units of eight bytes.
    #[must_use]
    pub fn offset(&self) -> u16 {
        self.ip.fragment_bits() & Ipv4::OFFSET_MASK
    }

    #[must_use]
    pub fn source(&self) -> Ip4 {
        self.ip.src
    }

    /// Under which a packet is counted that waited in vain.
    #[must_use]
    pub fn reason(&self) -> DropReason {
        match self.label.why {
            why::NEIGHBOUR => DropReason::NoNeighbour,
            why::FRAGMENT => DropReason::FragmentOrphan,
            why::TOO_BIG => DropReason::FragmentationNeeded,
            why::SYN => DropReason::Unsolicited,
            _ => DropReason::Internal,
        }
    }
}
