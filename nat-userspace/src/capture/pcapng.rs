//! The file: pcapng (draft-ietf-opsawg-pcapng), each packet as it came and as it left.
//!
//! Both have the same `epb_packetid`, so that a reader joins them; direction is in `epb_flags`,
//! what the program returned in `epb_verdict`, session and fate in the comment.

use std::{borrow::Cow, io::Write, time::Duration};

use pcap_file::{
    DataLink, Endianness,
    pcapng::{
        PcapNgWriteError, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{
                InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
            },
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
            opt_common::{CommonOption, UnknownOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

/// Options that the crate does not name.
const EPB_PACKETID: u16 = 5;
const EPB_VERDICT: u16 = 7;
/// Whose `epb_verdict` is.
const TC: u8 = 1;
const XDP: u8 = 2;
/// `epb_flags`.
pub(crate) const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

type Result<T> = std::result::Result<T, PcapNgWriteError>;

/// An interface as it is named in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// Such as "public, native".
    pub description: String,
}

/// What the program returned for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `XDP_PASS` and so on.
    Xdp(u32),
    /// `TC_ACT_SHOT` and so on.
    Tc(i32),
}

impl Action {
    /// `epb_verdict`.
    fn option(self) -> [u8; 9] {
        let (hook, value) = match self {
            Self::Xdp(action) => (XDP, u64::from(action).to_ne_bytes()),
            Self::Tc(action) => (TC, i64::from(action).to_ne_bytes()),
        };
        let mut option = [hook; 9];
        option[1..].copy_from_slice(&value);
        option
    }
}

/// One packet for the file; times since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown<'a> {
    pub id: u64,
    pub time: Duration,
    /// Number of the interface in the file.
    pub interface: u32,
    pub frame: &'a [u8],
    /// Bytes of the whole frame.
    pub length: u32,
    pub comment: &'a str,
    /// The form in which it left, and not the one in which it came.
    pub leaves: bool,
    pub action: Action,
}

pub struct Pcapng<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: u32,
    snap: u32,
}

impl<W: Write> Pcapng<W> {
    /// # Errors
    /// Where it cannot be written to.
    pub fn new(out: W, snap: u32) -> Result<Self> {
        let application = format!("natgw {}", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(Cow::Owned(application))],
            ..SectionHeaderBlock::default()
        };
        let writer = PcapNgWriter::with_section_header(out, section)?;
        Ok(Self { writer, interfaces: 0, snap })
    }

    /// Returns its number in the file.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn interface(&mut self, interface: &Interface) -> Result<u32> {
        let name = Cow::Borrowed(interface.name.as_str());
        let description = Cow::Borrowed(interface.description.as_str());
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snap,
            options: vec![
                InterfaceDescriptionOption::IfName(name),
                InterfaceDescriptionOption::IfDescription(description),
                InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
            ],
        })?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// # Errors
    /// Where it cannot be written.
    pub fn packet(&mut self, shown: &Shown<'_>) -> Result<()> {
        let direction = if shown.leaves { OUTBOUND } else { INBOUND };
        let id = shown.id.to_ne_bytes();
        let option = |code, value: &[u8]| {
            let value = Cow::Owned(value.to_vec());
            EnhancedPacketOption::Common(CommonOption::Unknown(UnknownOption { code, value }))
        };
        let comment = CommonOption::Comment(Cow::Borrowed(shown.comment));
        let kept = shown.frame.len().min(self.snap as usize);
        let block = EnhancedPacketBlock {
            interface_id: shown.interface,
            timestamp: shown.time,
            original_len: shown.length,
            data: Cow::Borrowed(&shown.frame[..kept]),
            options: vec![
                EnhancedPacketOption::Common(comment),
                EnhancedPacketOption::Flags(direction),
                option(EPB_PACKETID, &id),
                option(EPB_VERDICT, &shown.action.option()),
            ],
        };
        self.writer.write_pcapng_block(block).map(drop)
    }

    /// So far: packets brought and packets lost. They are of all interfaces, and stand with the
    /// first one.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn statistics(&mut self, time: Duration, packets: u64, lost: u64) -> Result<()> {
        let block = InterfaceStatisticsBlock {
            interface_id: 0,
            timestamp: time,
            options: vec![
                InterfaceStatisticsOption::IsbOsDrop(lost),
                InterfaceStatisticsOption::IsbUsrDeliv(packets),
            ],
        };
        self.writer.write_pcapng_block(block).map(drop)
    }

    pub fn out(&mut self) -> &mut W {
        self.writer.get_mut()
    }
}
