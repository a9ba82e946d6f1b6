//! `natgw capture`.

use std::{
    fs::File,
    io::{self, Write},
};

use anyhow::Context as _;
use pcap_file::pcapng::{
    Block, PcapNgParser,
    blocks::{
        enhanced_packet::EnhancedPacketOption, interface_statistics::InterfaceStatisticsOption,
    },
};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    capture::INBOUND,
    cli::{CaptureArgs, GatewayArgs},
    output::{self, Format},
};

use super::{Failure, client, converse};

/// What is in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Summary {
    packets: u64,
    /// That were to be captured, and came faster than they could be written.
    lost: u64,
}

impl Summary {
    fn note(&mut self, block: Block<'_>) {
        match block {
            Block::EnhancedPacket(packet) => {
                let came = packet.options.contains(&EnhancedPacketOption::Flags(INBOUND));
                self.packets += u64::from(came);
            }
            Block::InterfaceStatistics(statistics) => {
                for option in statistics.options {
                    if let InterfaceStatisticsOption::IsbOsDrop(lost) = option {
                        self.lost = lost;
                    }
                }
            }
            _ => {}
        }
    }
}

pub(super) fn execute(
    gateway: &GatewayArgs,
    args: &CaptureArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let to_stdout = args.write.as_os_str() == "-";
    let summary = if to_stdout {
        converse(capture(gateway, args, out))?
    } else {
        let path = args.write.display();
        let mut file = File::create(&args.write)
            .with_context(|| format!("cannot create {path}; name another file with -w"))?;
        converse(capture(gateway, args, &mut file))?
    };
    let Summary { packets, lost } = summary;
    match args.output.output {
        // Nothing but the file goes to stdout.
        _ if to_stdout => log::info!("{packets} packets captured, {lost} lost"),
        Format::Json => output::json(out, &summary)?,
        Format::Table => writeln!(out, "{packets} packets captured, {lost} lost")?,
    }
    Ok(())
}

async fn capture(
    gateway: &GatewayArgs,
    args: &CaptureArgs,
    out: &mut impl Write,
) -> Result<Summary, Failure> {
    let client = client(gateway);
    // One listener for the whole time: a signal beside a packet is none that is missed.
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut answer = client.capture(&args.request()).await?;
    let mut blocks = Blocks::default();
    let mut started = false;
    loop {
        let bytes = tokio::select! {
            bytes = answer.bytes() => bytes?,
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        };
        let Some(bytes) = bytes else { break };
        if !started {
            started = true;
            log::info!("capturing; Ctrl-C ends it");
        }
        let whole = blocks.add(&bytes)?;
        out.write_all(&whole).and_then(|()| out.flush()).map_err(unwritten)?;
    }
    Ok(blocks.summary)
}

fn unwritten(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::OutputClosed;
    }
    Failure::Failed(anyhow::Error::new(error).context("cannot write the capture; is there room?"))
}

/// The stream cut into blocks, so that a file that ends early is a right one.
#[derive(Default)]
struct Blocks {
    rest: Vec<u8>,
    parser: Option<PcapNgParser>,
    summary: Summary,
}

impl Blocks {
    /// The blocks that are whole by now.
    fn add(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        const STRANGE: &str = "the gateway's answer is no pcapng; is natgw of the same version?";
        self.rest.extend_from_slice(bytes);
        let mut end = 0;
        while let Some(length) = block_length(&self.rest[end..]) {
            let Some(block) = self.rest.get(end..end + length) else { break };
            match &mut self.parser {
                None => self.parser = Some(PcapNgParser::new(block).context(STRANGE)?.1),
                Some(parser) => self.summary.note(parser.next_block(block).context(STRANGE)?.1),
            }
            end += length;
        }
        Ok(self.rest.drain(..end).collect())
    }
}

/// Type and total length come first in every block.
fn block_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
    Some((length as usize).max(12))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capture::{Interface, Pcapng};

    #[test]
    fn a_stream_that_breaks_off_within_a_block_leaves_the_whole_ones_before_it() {
        let mut pcapng = Pcapng::new(Vec::new(), 128).expect("a header");
        let lan = Interface { name: "lan0".to_owned(), description: "private".to_owned() };
        pcapng.interface(&lan).expect("an interface");
        let before = pcapng.out().len();
        pcapng.statistics(Duration::from_secs(1), 7, 2).expect("statistics");
        let bytes = std::mem::take(pcapng.out());
        let mut blocks = Blocks::default();
        let mut whole = Vec::new();
        for piece in bytes[..bytes.len() - 1].chunks(5) {
            whole.extend(blocks.add(piece).expect("pcapng"));
        }
        assert_eq!(whole, &bytes[..before]);
        assert_eq!(blocks.summary, Summary::default());
        blocks.add(&bytes[bytes.len() - 1..]).expect("pcapng");
        assert_eq!(blocks.summary, Summary { packets: 0, lost: 2 });
    }
}
