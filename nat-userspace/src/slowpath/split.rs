//! Fragmentation of an IPv4 packet (RFC 791 section 3.2, "An Example Fragmentation Procedure").

use nat_common::{checksum::Sum, wire::Ethernet, wire::Ipv4};

const LINK: usize = size_of::<Ethernet>();
/// Every link takes so much (RFC 791 section 3.2); a smaller MTU is a mistake.
const LEAST_MTU: usize = 68;
/// Offsets count in these.
const UNIT: usize = 8;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
/// The option belongs to every fragment.
const COPIED: u8 = 0x80;

/// The frames, Ethernet header first, whose packets have `mtu` bytes at most. `None` where the
/// packet may not be fragmented, or is none.
#[must_use]
pub fn split(frame: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let packet = frame.get(LINK..)?;
    let ip: Ipv4 = bytemuck::try_pod_read_unaligned(packet.get(..Ipv4::MIN_LEN)?).ok()?;
    let (header_len, total) = (ip.header_len(), usize::from(ip.total_len()));
    if header_len < Ipv4::MIN_LEN
        || total <= header_len
        || mtu < LEAST_MTU
        || ip.fragment_bits() & Ipv4::DONT_FRAGMENT != 0
    {
        return None;
    }
    let (header, content) = packet.get(..total)?.split_at(header_len);
    let later = later_header(header);
    let bits = ip.fragment_bits();
    let first_unit = usize::from(bits & Ipv4::OFFSET_MASK);
    let more = bits & Ipv4::MORE_FRAGMENTS;

    let mut pieces = Vec::new();
    let mut done = 0;
    while done < content.len() {
        let header = if done == 0 { header } else { &later };
        let room = (mtu - header.len()) / UNIT * UNIT;
        let left = content.len() - done;
        // The last one need not end where a unit does.
        let take = if left <= mtu - header.len() { left } else { room };
        let last = take == left;
        let offset = u16::try_from(first_unit + done / UNIT).ok()?;
        if offset > Ipv4::OFFSET_MASK {
            return None;
        }
        let flags = if last { more } else { Ipv4::MORE_FRAGMENTS };
        let mut piece = Vec::with_capacity(LINK + header.len() + take);
        piece.extend_from_slice(&frame[..LINK]);
        piece.extend_from_slice(header);
        piece.extend_from_slice(&content[done..done + take]);
        seal(&mut piece[LINK..], header.len(), flags | offset)?;
        pieces.push(piece);
        done += take;
    }
    Some(pieces)
}

/// The header of every piece but the first: only the options that are to be copied.
fn later_header(header: &[u8]) -> Vec<u8> {
    let (fixed, mut options) = header.split_at(Ipv4::MIN_LEN);
    let mut later = fixed.to_vec();
    while let Some(&kind) = options.first() {
        let length = match kind {
            OPTION_END => break,
            OPTION_NOP => 1,
            _ => match options.get(1) {
                Some(&length) if length >= 2 && usize::from(length) <= options.len() => {
                    usize::from(length)
                }
                _ => break,
            },
        };
        if kind & COPIED != 0 {
            later.extend_from_slice(&options[..length]);
        }
        options = &options[length..];
    }
    later.resize(later.len().next_multiple_of(4), OPTION_END);
    later
}

/// Length, place and checksum.
fn seal(packet: &mut [u8], header_len: usize, fragment: u16) -> Option<()> {
    let total = u16::try_from(packet.len()).ok()?;
    let words = u8::try_from(header_len / 4).ok()?;
    let header = packet.get_mut(..header_len)?;
    header[0] = 0x40 | words;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[10..12].fill(0);
    let sum = checksum(header);
    header[10..12].copy_from_slice(&sum);
    Some(())
}

fn checksum(header: &[u8]) -> [u8; 2] {
    let words = header.chunks_exact(4);
    words.fold(Sum::ZERO, |sum, word| sum.add4([word[0], word[1], word[2], word[3]])).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet with these options and `content` bytes behind its header.
    fn packet(options: &[u8], content: usize, fragment: u16) -> Vec<u8> {
        let mut frame = vec![0x5e; LINK];
        let total = Ipv4::MIN_LEN + options.len() + content;
        let mut header = vec![0; Ipv4::MIN_LEN];
        header[8..10].copy_from_slice(&[64, 17]);
        header[4..6].copy_from_slice(&[0xab, 0xcd]);
        header[12..20].copy_from_slice(&[10, 0, 1, 5, 203, 0, 113, 10]);
        header.extend(options);
        let header_len = header.len();
        frame.extend(header);
        frame.extend((0..content).map(|byte| byte as u8));
        assert_eq!(frame.len(), LINK + total);
        seal(&mut frame[LINK..], header_len, fragment).expect("a packet");
        frame
    }

    /// Offset in bytes, whether more follow, header, content.
    fn read(piece: &[u8]) -> (usize, bool, &[u8], &[u8]) {
        let packet = &piece[LINK..];
        let header_len = usize::from(packet[0] & 15) * 4;
        let (header, content) = packet.split_at(header_len);
        assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]])), packet.len());
        let mut zeroed = header.to_vec();
        zeroed[10..12].fill(0);
        assert_eq!(checksum(&zeroed), header[10..12], "header checksum");
        let bits = u16::from_be_bytes([header[6], header[7]]);
        let offset = usize::from(bits & Ipv4::OFFSET_MASK) * UNIT;
        (offset, bits & Ipv4::MORE_FRAGMENTS != 0, header, content)
    }

    /// The content put together again.
    fn joined(pieces: &[Vec<u8>], start: usize) -> Vec<u8> {
        let mut content = Vec::new();
        for piece in pieces {
            let (offset, _, _, part) = read(piece);
            assert_eq!(offset, start + content.len(), "no gap and no overlap");
            content.extend_from_slice(part);
        }
        content
    }

    #[test]
    fn the_pieces_fit_and_make_the_packet_again_whatever_its_size_and_the_mtu() {
        for (size, mtu) in [(1480, 1400), (1480, 68), (1481, 576), (60_000, 1280), (8, 1500)] {
            let frame = packet(&[], size, 0);
            let pieces = split(&frame, mtu).expect("may be split");
            assert!(pieces.iter().all(|piece| piece.len() - LINK <= mtu), "{size} over {mtu}");
            assert_eq!(joined(&pieces, 0), frame[LINK + 20..]);
            for (number, piece) in pieces.iter().enumerate() {
                let (_, more, header, _) = read(piece);
                assert_eq!(more, number + 1 < pieces.len());
                assert_eq!(header[4..6], [0xab, 0xcd], "identification");
                assert_eq!(piece[..LINK], frame[..LINK]);
            }
        }
    }

    #[test]
    fn a_fragment_is_split_into_fragments_of_the_same_datagram() {
        let frame = packet(&[], 1480, Ipv4::MORE_FRAGMENTS | 185);
        let pieces = split(&frame, 1000).expect("may be split");
        assert_eq!(joined(&pieces, 185 * UNIT), frame[LINK + 20..]);
        assert!(pieces.iter().all(|piece| read(piece).1), "more follow after the last one too");
    }

    #[test]
    fn only_options_marked_so_are_copied_into_later_pieces() {
        // Record route (not copied), no-operation, then a stream identifier (copied).
        let options = [7, 3, 4, 1, 0x88, 4, 0, 9];
        let frame = packet(&options, 1400, 0);
        let pieces = split(&frame, 600).expect("may be split");
        assert_eq!(read(&pieces[0]).2[20..], options);
        for piece in &pieces[1..] {
            assert_eq!(read(piece).2[20..], [0x88, 4, 0, 9]);
        }
        assert_eq!(joined(&pieces, 0), frame[LINK + options.len() + 20..]);
    }

    #[test]
    fn what_must_not_or_cannot_be_split_is_not() {
        assert_eq!(split(&packet(&[], 1480, Ipv4::DONT_FRAGMENT), 1400), None);
        assert_eq!(split(&packet(&[], 1480, 0), 67), None, "no link has such an MTU");
        assert_eq!(split(&packet(&[], 1480, 0)[..100], 1400), None, "cut off");
        assert_eq!(split(&packet(&[], 64_000, Ipv4::OFFSET_MASK), 1400), None, "beyond the end");
    }
}
