//! The bpf(2) calls that aya does not wrap: reading a map in batches, asking a link for its
//! interface, netfilter programs. Everything else goes through aya.

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_prog_type,
};

/// One `BPF_MAP_LOOKUP_BATCH` (Linux 5.6).
///
/// `after` is the token of the previous call; returns the number of entries copied, and the token
/// for the next call unless the table's end was reached.
///
/// # Errors
/// `ENOSPC` where one hash bucket alone holds more entries than the buffers.
pub(super) fn lookup_batch<K: bytemuck::Pod, V: bytemuck::Pod>(
    map: BorrowedFd<'_>,
    after: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<u32>)> {
    let mut token = 0_u32;
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: `batch` is the member that this command reads.
    let batch = unsafe { &mut attr.batch };
    batch.map_fd = map.as_raw_fd().cast_unsigned();
    batch.in_batch = after.as_ref().map_or(0, |token| std::ptr::from_ref(token) as u64);
    batch.out_batch = (&raw mut token) as u64;
    batch.keys = keys.as_mut_ptr() as u64;
    batch.values = values.as_mut_ptr() as u64;
    batch.count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
    // SAFETY: as above; the kernel has written the number of entries.
    let count = unsafe { attr.batch.count } as usize;
    match result {
        Ok(_) => Ok((count, Some(token))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((count, None)),
        Err(error) => Err(error),
    }
}

/// What a pinned link is tied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkTarget {
    /// 0: the interface is gone, and the link with it.
    pub(super) ifindex: u32,
    pub(super) program: u32,
}

pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: member of BPF_OBJ_GET.
    let object = unsafe { &mut attr.__bindgen_anon_4 };
    object.pathname = path.as_ptr() as u64;
    made(bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?)
}

pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: member of BPF_OBJ_PIN.
    let pinned = unsafe { &mut attr.__bindgen_anon_4 };
    pinned.pathname = path.as_ptr() as u64;
    pinned.bpf_fd = object.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Writes the one element of an array map, whose value is as long as `value`.
pub(super) fn fill(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let key = 0_u32;
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: member of BPF_MAP_UPDATE_ELEM.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd().cast_unsigned();
    element.key = (&raw const key) as u64;
    element.__bindgen_anon_1.value = value.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Loads a netfilter program (Linux 6.4).
pub(super) fn load_netfilter(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
) -> io::Result<OwnedFd> {
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: member of BPF_PROG_LOAD.
    let program = unsafe { &mut attr.__bindgen_anon_3 };
    program.prog_type = bpf_prog_type::BPF_PROG_TYPE_NETFILTER as u32;
    program.expected_attach_type = bpf_attach_type::BPF_NETFILTER as u32;
    program.insns = instructions.as_ptr() as u64;
    program.insn_cnt = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
    program.license = license.as_ptr() as u64;
    // The last byte stays zero.
    let room = program.prog_name.len() - 1;
    for (to, from) in program.prog_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    made(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?)
}

/// Attaches a netfilter program to a hook of IPv4 in this thread's network namespace.
pub(super) fn link_netfilter(
    program: BorrowedFd<'_>,
    hook: u32,
    priority: i32,
) -> io::Result<OwnedFd> {
    const NFPROTO_IPV4: u32 = 2;
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: member of BPF_LINK_CREATE.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    link.attach_type = bpf_attach_type::BPF_NETFILTER as u32;
    // SAFETY: the member that belongs to this type of link.
    let netfilter = unsafe { &mut link.__bindgen_anon_3.netfilter };
    netfilter.pf = NFPROTO_IPV4;
    netfilter.hooknum = hook;
    netfilter.priority = priority;
    made(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

fn made(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: the kernel made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The interface of an XDP or TCX link, whose information has the same place in both.
pub(super) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    // SAFETY: both are plain integers.
    let (mut attr, info): (bpf_attr, bpf_link_info) = unsafe { (mem::zeroed(), mem::zeroed()) };
    // SAFETY: member of BPF_OBJ_GET_INFO_BY_FD.
    let query = unsafe { &mut attr.info };
    query.bpf_fd = link.as_raw_fd().cast_unsigned();
    query.info = (&raw const info) as u64;
    query.info_len = size_of::<bpf_link_info>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: `xdp` and `tcx` both begin with the interface's index, and the kernel zeroes the
    // rest. The read is volatile because the kernel wrote behind the compiler's back.
    let info = unsafe { std::ptr::read_volatile(&raw const info) };
    // SAFETY: see above.
    Ok(LinkTarget { ifindex: unsafe { info.__bindgen_anon_1.xdp.ifindex }, program: info.prog_id })
}

/// Takes a link off its interface whoever else holds it (Linux 5.9).
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.link_detach.link_fd = link.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is a whole, initialised attribute, and the pointers in it are the callers'
    // live buffers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
