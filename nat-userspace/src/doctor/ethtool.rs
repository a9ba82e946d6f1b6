//! What the driver says of an interface (`include/uapi/linux/ethtool.h`). Anybody may ask.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const GET_DRIVER: u32 = 0x03;
const GET_TX_CHECKSUM: u32 = 0x16;
const GET_FLAGS: u32 = 0x25;
const GET_GRO: u32 = 0x2b;
const GET_CHANNELS: u32 = 0x3c;
const FLAG_LRO: u32 = 1 << 15;

/// Nothing where the driver does not know the question.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Driver {
    pub(super) name: Option<String>,
    pub(super) lro: bool,
    pub(super) gro: Option<bool>,
    pub(super) tx_checksum: Option<bool>,
    /// Queue pairs in use, and how many there may be.
    pub(super) queues: Option<(u32, u32)>,
}

pub(super) fn ask(interface: &str) -> Driver {
    let Ok(socket) = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
    else {
        return Driver::default();
    };
    let value = |command| call(&socket, interface, [command, 0]).ok().map(|[_, value]| value);
    Driver {
        // command, name, version, and more: `struct ethtool_drvinfo` has 196 bytes.
        name: call(&socket, interface, first::<49>(GET_DRIVER))
            .ok()
            .map(|answer| text(&answer[1..9])),
        lro: value(GET_FLAGS).is_some_and(|flags| flags & FLAG_LRO != 0),
        gro: value(GET_GRO).map(|it| it != 0),
        tx_checksum: value(GET_TX_CHECKSUM).map(|it| it != 0),
        // command, then the most of receive, send, other, combined, then what is set of each.
        queues: call(&socket, interface, first::<9>(GET_CHANNELS)).ok().map(|it| (it[8], it[4])),
    }
}

const fn first<const N: usize>(command: u32) -> [u32; N] {
    let mut words = [0; N];
    words[0] = command;
    words
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn call<const N: usize>(
    socket: &OwnedFd,
    interface: &str,
    mut words: [u32; N],
) -> io::Result<[u32; N]> {
    // SAFETY: an all-zero request is one, with an empty name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
    for (to, from) in name.zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the request and the words that it points to live until the call is over, and `N` is
    // the size that the kernel writes for the command.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_answers_and_an_interface_that_is_not_there_says_nothing() {
        let loopback = ask("lo");
        assert_eq!((loopback.lro, loopback.gro.is_some()), (false, true), "{loopback:?}");
        assert_eq!(ask("no-such-if"), Driver::default());
    }

    #[test]
    fn a_name_ends_at_its_first_zero() {
        assert_eq!(text(&[u32::from_ne_bytes(*b"veth"), 0]), "veth");
    }
}
