//! Public addresses belong to one pool or one one-to-one mapping, each of them once.

use super::super::fault::{At, Faults};

/// A run of public addresses, as numbers in host order, and who wants it.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) first: u32,
    pub(super) last: u32,
    /// As written: "198.51.100.16/30".
    pub(super) text: String,
    /// "pool \"default\"".
    pub(super) owner: String,
    pub(super) at: At,
}

/// Reports each claim that meets an earlier one of the file, once.
pub(super) fn report(mut claims: Vec<Claim>, faults: &mut Faults) {
    claims.sort_by_key(|claim| match claim.at {
        At::Offset(offset) => offset,
        At::Flag(_) => 0,
    });
    for (index, claim) in claims.iter().enumerate() {
        let earlier = claims[..index]
            .iter()
            .find(|earlier| earlier.first <= claim.last && claim.first <= earlier.last);
        if let Some(earlier) = earlier {
            faults.add(
                claim.at,
                format!(
                    "{} of {} overlaps {} of {}",
                    claim.text, claim.owner, earlier.text, earlier.owner
                ),
                "let each public address stand in one place only",
            );
        }
    }
}
