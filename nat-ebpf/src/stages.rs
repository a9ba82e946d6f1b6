//! What the programs of both hooks have in common: which stages there are, and how a packet comes back from the slow
//! path.

use nat_common::{
    env::Tables as _,
    stage::{
        Step,
        hold::{self, GivenUp, Returned},
    },
};

use crate::{
    frame::Frame,
    mode::{self, Env},
};

/// Makes a program of each stage that both hooks have, by the macro that it is given.
macro_rules! every_stage {
    ($make:ident) => {
        $make! {
            natgw_hit = nat_common::stage::hit::run;
            natgw_classify = nat_common::stage::classify::run;
            natgw_open = nat_common::stage::open::run;
            natgw_open_busy = nat_common::stage::open_busy::run;
            natgw_inbound = nat_common::stage::inbound::run;
            natgw_error = nat_common::stage::error::run;
            natgw_fragment = nat_common::stage::fragment::run;
            natgw_answer = nat_common::answer::run;
            natgw_stateless = nat_common::stage::stateless::run;
            natgw_bind = nat_common::stage::bind::run;
            natgw_join = nat_common::stage::bind::join;
            natgw_accept = nat_common::stage::accept::run;
            natgw_hold = nat_common::stage::hold::run;
            natgw_verify = nat_common::stage::verify::run;
            natgw_seek = nat_common::stage::seek::run;
            natgw_send = nat_common::stage::send::run;
            natgw_reclaim = nat_common::stage::seek::reclaim;
            natgw_fast = nat_common::stage::fast::run;
        }
    };
}
pub(crate) use every_stage;

/// What is next for a packet that the daemon returns: the way of a new one.
#[inline(always)]
pub(crate) fn take_back(
    frame: &mut Frame,
    env: &Env,
    Returned { ingress, bits }: Returned,
) -> Step {
    frame.ingress = ingress;
    frame.returned = bits;
    mode::received(frame);
    hold::resume(frame, env, bits)
}

/// Counts a packet that the daemon has given up, under its reason.
#[inline(always)]
pub(crate) fn give_up(env: &Env, GivenUp { reason, count }: GivenUp) {
    env.counters(|counters| {
        counters.packets_released += u64::from(count);
        counters.drop_some(reason, u64::from(count));
    });
}
