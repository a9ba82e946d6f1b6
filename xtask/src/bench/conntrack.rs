//! Netfilter's connection table: emptying it, and making room in it for the length of a bench.

use std::fs;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`; without attributes it deletes everything.
const CT_DELETE: u16 = 1 << 8 | 2;

/// Deletes all connections of the namespace this thread is in.
pub(super) fn flush() -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .context("open a netfilter netlink socket")?;
    let mut message = Vec::with_capacity(20);
    message.extend(20u32.to_ne_bytes()); // length
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([libc::AF_INET as u8, 0, 0, 0]); // struct nfgenmsg: family, version, resource
    send(netlink.as_raw_fd(), &message, MsgFlags::empty()).context("ask for a flush")?;
    let mut answer = [0; 256];
    let length =
        recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).context("read answer")?;
    // struct nlmsghdr (16 bytes), then the negative errno of struct nlmsgerr
    let code = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        code => bail!("the kernel refused to flush its connections: {code:?}"),
    }
}

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// A higher limit of connections, and a bucket for each; the old values come back when this is
/// dropped. They are those of the whole machine and can only be set outside of other namespaces.
#[derive(Debug)]
pub(super) struct Room {
    before: Vec<(&'static str, String)>,
}

impl Room {
    pub(super) fn make(connections: u32) -> Result<Self> {
        let mut room = Self { before: Vec::new() };
        // More buckets raise the limit too, so they come first, and go back first.
        for (file, wanted) in [(BUCKETS, connections.next_power_of_two()), (MAX, connections)] {
            let before = fs::read_to_string(file).with_context(|| format!("read {file}"))?;
            fs::write(file, wanted.to_string())
                .with_context(|| format!("write {wanted} to {file}"))?;
            room.before.push((file, before.trim().to_owned()));
        }
        Ok(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (file, before) in &self.before {
            if let Err(error) = fs::write(file, before) {
                eprintln!("could not set {file} back to {before}: {error}");
            }
        }
    }
}
