//! The first packet of a session that the stage before has just opened: out, by what that one left.

use crate::{
    agenda::Note,
    env::{Env, Packet},
    parse::{Parse, parse},
    session::{NextHop, Path, Word},
    stage::{Hop, Side, Step, deliver, direction},
    translate::Rewrite,
    verdict::DropReason,
};

/// The draft still is the outbound half, which counts this packet already: no lookup is needed.
#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let lost = Step::drop(DropReason::Internal, Side::Source, 0);
    let Some(interface) = env.interface(packet.ingress()) else { return lost };
    let Parse::Ipv4(parsed) = parse(packet, interface.realm) else { return lost };
    let Some((rewrite, hop, flags, word)) = env.draft(|draft| {
        let rewrite =
            Rewrite { tuple: draft.tuple, ip_delta: draft.ip_delta, l4_delta: draft.l4_delta };
        let hop = Hop { next: NextHop(draft.next_hop), mtu: Path(draft.path).mtu() };
        (rewrite, hop, draft.flags, draft.word)
    }) else {
        return lost;
    };
    // Here, for the stages that open have no room left.
    env.note(Note::of(&parsed.key, Word(word)));
    let (verdict, side) = direction(flags);
    match deliver::send::<P, E, true, true>(packet, env, &parsed, &rewrite, hop, side, verdict) {
        Ok(step) | Err(step) => step,
    }
}
