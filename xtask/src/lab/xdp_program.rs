//! XDP programs of a few instructions, written by hand.
//!
//! A lab needs [`XdpAction::Pass`] on the veth that faces a gateway: a veth takes redirected
//! frames only if its peer polls (NAPI: GRO on, or an XDP program), and `XDP_TX` frames only if
//! the peer has an XDP program (`veth_xdp_flush` in drivers/net/veth.c). The others prove that.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use super::namespace::Namespace;

// Numbers of <linux/bpf.h> and <linux/if_link.h>.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;
/// The helper `bpf_redirect`.
const REDIRECT_HELPER: i32 = 23;

/// What a program does with every frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XdpAction {
    /// To the stack.
    Pass,
    /// Back out of the same interface, unchanged.
    Bounce,
    /// Out of the interface with this index, unchanged.
    Redirect(u32),
}

impl XdpAction {
    fn instructions(self) -> Vec<u64> {
        // struct bpf_insn, little endian: opcode, registers, offset (0 here), immediate.
        let instruction = |opcode: u64, register: u64, immediate: i32| {
            opcode | register << 8 | u64::from(immediate.cast_unsigned()) << 32
        };
        let set = |register, value| instruction(0xb7, register, value);
        let call = |helper| instruction(0x85, 0, helper);
        let exit = instruction(0x95, 0, 0);
        match self {
            Self::Pass => vec![set(0, XDP_PASS), exit],
            Self::Bounce => vec![set(0, XDP_TX), exit],
            Self::Redirect(index) => {
                vec![set(1, index.cast_signed()), set(2, 0), call(REDIRECT_HELPER), exit]
            }
        }
    }
}

/// The part of `union bpf_attr` that loading needs.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that a link to an interface needs.
#[repr(C)]
struct LinkAttributes {
    program: i32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// The attached program; dropping it takes it off.
#[derive(Debug)]
pub struct XdpProgram {
    _link: OwnedFd,
}

impl XdpProgram {
    /// Loads and attaches it in native mode.
    pub fn attach(namespace: &Namespace, interface: &str, action: XdpAction) -> Result<Self> {
        let index = namespace.interface(interface)?.index;
        let link = namespace.enter(|| attach(index, action)).with_context(|| {
            format!(
                "cannot attach an XDP program to {interface} in {}; labs need root and Linux 6.1",
                namespace.name()
            )
        })?;
        Ok(Self { _link: link })
    }
}

fn attach(index: u32, action: XdpAction) -> io::Result<OwnedFd> {
    let instructions = action.instructions();
    let load = LoadAttributes {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: u32::try_from(instructions.len()).expect("a handful"),
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        // Without it the kernel refuses MTUs above a page, and the gateway's jumbo frames.
        flags: BPF_F_XDP_HAS_FRAGS,
    };
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let link = LinkAttributes {
        program: program.as_raw_fd(),
        interface: index,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &link)
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: pointer and size are those of a live structure laid out as the kernel's; the
    // buffers it points to live as long. Both commands return a new descriptor or -1.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
