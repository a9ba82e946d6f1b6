//! What the flow log hears of sessions. Nothing waits for it: a record that finds no room in the
//! ring is counted as lost.

use crate::{
    env::Env,
    flow::{FlowKey, Tuple},
    record::kind,
    rules::{Control, control},
    session::{Session, State, Word},
};

/// A session was opened; `tuple` is what its outbound half translates to.
#[inline(always)]
pub fn opened<E: Env>(
    env: &E,
    key: &FlowKey,
    tuple: Tuple,
    flags: u8,
    state: State,
    now: u32,
) -> u64 {
    let Some(control) = env.control() else { return 0 };
    if control.flags & control::LOG_OPENED == 0 {
        return 0;
    }
    env.record(|record| {
        record.kind = kind::OPENED;
        record.state = state as u8;
        record.flags = flags;
        record.key = *key;
        record.tuple = tuple;
        record.created = now;
        record.seen = now;
        record.now = now;
        record.idle = 0;
        record.packets_out = 0;
        record.bytes_out = 0;
        record.packets_in = 0;
        record.bytes_in = 0;
        record.zero = [0; 4];
    })
}

/// A session has ended: both halves are dead and count no more, but are still there. Returns how many
/// records were lost, for the caller to count with the rest: a branch of its own would multiply what
/// the verifier has to look at.
#[inline(always)]
pub fn ended<E: Env>(
    env: &E,
    control: &Control,
    key: &FlowKey,
    (session, before): (&Session, Word),
    partner: Option<(&Session, Word)>,
    idle: bool,
    now: u32,
) -> u64 {
    if control.flags & control::LOG_ENDED == 0 {
        return 0;
    }
    env.record(|record| {
        record.kind = kind::ENDED;
        record.state = before.state_bits();
        record.flags = session.flags;
        record.idle = u8::from(idle);
        record.key = *key;
        record.tuple = session.tuple;
        record.created = session.created;
        record.seen = before.seen();
        record.now = now;
        record.packets_out = session.packets.get();
        record.bytes_out = session.bytes.get();
        record.packets_in = 0;
        record.bytes_in = 0;
        record.zero = [0; 4];
        if let Some((partner, word)) = partner {
            record.packets_in = partner.packets.get();
            record.bytes_in = partner.bytes.get();
            // The younger of two times that may have wrapped.
            if now.wrapping_sub(word.seen()) < now.wrapping_sub(before.seen()) {
                record.seen = word.seen();
            }
        }
    })
}
