//! Clock and network over helpers.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_RB_NO_WAKEUP, bpf_fib_lookup as FibParams, bpf_sock_tuple,
    },
    helpers::{
        bpf_fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_sk_lookup_udp, bpf_sk_release,
        bpf_skc_lookup_tcp,
    },
};
use nat_common::{
    env::{Clock, Network, Route, RouteQuery},
    event::Event,
    flow::FlowKey,
    net::{Ip4, Mac, proto},
    record::FlowRecord,
};

use crate::{
    maps::{EVENTS, RECORD, RECORDS},
    tables::Kernel,
};

const AF_INET: u8 = 2;

impl Clock for Kernel {
    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: no arguments; the verifier inlines it.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}

/// The next hop's Ethernet address, by loads that the stack takes: they must be aligned there, and
/// the compiler makes wider ones of bytes, because packets take any.
#[inline(always)]
fn destination(params: &FibParams) -> Mac {
    const { assert!(core::mem::offset_of!(FibParams, dmac).is_multiple_of(2)) };
    let words = (&raw const params.dmac).cast::<u16>();
    // SAFETY: six bytes, at an even offset of an aligned struct.
    let words = unsafe {
        [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile()]
    };
    let [[a, b], [c, d], [e, f]] = words.map(u16::to_ne_bytes);
    Mac([a, b, c, d, e, f])
}

/// Where the host's own forwarding would send a packet.
pub(crate) enum Egress {
    Interface(u32),
    /// To the host itself, or nowhere.
    None,
    /// The lookup has failed.
    Unknown,
}

impl Kernel {
    #[inline(always)]
    fn look_up(&self, query: &RouteQuery, params: &mut FibParams) -> i64 {
        params.family = AF_INET;
        params.l4_protocol = query.protocol;
        params.sport = query.sport.raw();
        params.dport = query.dport.raw();
        // Of no length: any size will do. With 0 the kernel would take that of the frame, in tc.
        params.__bindgen_anon_1.tot_len = query.length.max(1);
        params.ifindex = query.ingress;
        params.__bindgen_anon_2.tos = query.tos;
        params.__bindgen_anon_3.ipv4_src = query.src.raw();
        params.__bindgen_anon_4.ipv4_dst = query.dst.raw();
        let params: *mut FibParams = params;
        // SAFETY: the context is the program's, the struct is initialised and of the given size.
        unsafe { bpf_fib_lookup(self.ctx, params, size_of::<FibParams>() as i32, 0) }
    }

    /// For tc programs and a query of no length: then what is too big for the interface is told
    /// after the interface (`bpf_skb_fib_lookup` in net/core/filter.c).
    #[inline(always)]
    pub(crate) fn egress(&self, query: &RouteQuery) -> Egress {
        // SAFETY: all zero is a valid value of this plain C struct.
        let mut params: FibParams = unsafe { core::mem::zeroed() };
        let verdict = self.look_up(query, &mut params);
        if verdict < 0 {
            return Egress::Unknown;
        }
        match verdict as u32 {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                Egress::Interface(params.ifindex)
            }
            _ => Egress::None,
        }
    }
}

impl Network for Kernel {
    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Route {
        // SAFETY: all zero is a valid value of this plain C struct.
        let mut params: FibParams = unsafe { core::mem::zeroed() };
        let verdict = self.look_up(query, &mut params);
        // SAFETY (of the union reads): every member is plain bytes, and the kernel has written
        // the one that belongs to the verdict.
        match verdict as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => Route::Hop {
                ifindex: params.ifindex,
                mac: destination(&params),
                mtu: unsafe { params.__bindgen_anon_1.mtu_result },
            },
            BPF_FIB_LKUP_RET_NO_NEIGH => Route::NoNeighbour {
                ifindex: params.ifindex,
                gateway: Ip4::from_raw(unsafe { params.__bindgen_anon_4.ipv4_dst }),
            },
            BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                Route::TooBig { mtu: unsafe { params.__bindgen_anon_1.mtu_result } }
            }
            _ => Route::Local,
        }
    }

    #[inline(always)]
    fn socket(&self, key: &FlowKey) -> bool {
        // SAFETY: all zero is a valid value of this plain C union.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        tuple.__bindgen_anon_1.ipv4.saddr = key.tuple.src.raw();
        tuple.__bindgen_anon_1.ipv4.daddr = key.tuple.dst.raw();
        tuple.__bindgen_anon_1.ipv4.sport = key.tuple.sport.raw();
        tuple.__bindgen_anon_1.ipv4.dport = key.tuple.dport.raw();
        const LEN: u32 = 12;
        const CURRENT_NETNS: u64 = u64::MAX;
        // SAFETY: the tuple is initialised for IPv4; what a lookup returns is released at once.
        unsafe {
            let socket = match key.protocol {
                proto::TCP => {
                    bpf_skc_lookup_tcp(self.ctx, &raw mut tuple, LEN, CURRENT_NETNS, 0).cast()
                }
                proto::UDP => bpf_sk_lookup_udp(self.ctx, &raw mut tuple, LEN, CURRENT_NETNS, 0),
                _ => return false,
            };
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
            true
        }
    }

    #[inline(always)]
    fn event(&self, event: &Event) {
        // A full ring loses the event, which is allowed.
        let _lost = EVENTS.output::<Event>(*event, 0);
    }

    #[inline(always)]
    fn record(&self, fill: impl FnOnce(&mut FlowRecord)) -> u64 {
        let Some(record) = RECORD.get_ptr_mut(0) else { return 1 };
        // The log looks by itself, several times a second; waking it would cost the packet.
        let flags = u64::from(BPF_RB_NO_WAKEUP);
        // In a map and copied from there: the stack has no room for it, and a reservation would
        // multiply the verifier's states.
        // SAFETY: the slot is this CPU's own, programs of one CPU do not nest, and any bytes are a
        // record.
        let record = unsafe { &mut *record };
        fill(record);
        let result = match RECORDS.output::<FlowRecord>(&*record, flags) {
            Ok(()) => 0,
            Err(error) => i64::from(error),
        };
        // Errors are negative.
        (result as u64) >> 63
    }
}
