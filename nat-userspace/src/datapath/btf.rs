//! Where a field stands in a structure of the running kernel, from its BTF.
//!
//! aya keeps what it reads of BTF to itself, and relocates only objects made from C; three offsets
//! are worth this reader. Format: Documentation/bpf/btf.rst of the kernel, all numbers in the
//! machine's order.

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// The kernel's BTF, as it reads from `/sys/kernel/btf/vmlinux`.
pub(super) struct KernelTypes {
    data: Vec<u8>,
    types: std::ops::Range<usize>,
    strings: usize,
}

impl KernelTypes {
    pub(super) fn read() -> Option<Self> {
        Self::parse(std::fs::read("/sys/kernel/btf/vmlinux").ok()?)
    }

    fn parse(data: Vec<u8>) -> Option<Self> {
        if u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = number(&data, 4)? as usize;
        let types = header + number(&data, 8)? as usize;
        let length = number(&data, 12)? as usize;
        let strings = header + number(&data, 16)? as usize;
        Some(Self { data, types: types..types + length, strings })
    }

    /// Offset in bytes of a direct member of a named structure.
    pub(super) fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let mut at = self.types.start;
        while at < self.types.end {
            let (name, info) = (number(&self.data, at)?, number(&self.data, at + 4)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let body = at + 12;
            if kind == KIND_STRUCT && self.is_named(name, structure) {
                return (0..count).find_map(|index| {
                    let entry = body + 12 * index;
                    let bits = number(&self.data, entry + 8)?;
                    // With the top bit of `info` set, the upper byte is a bit field's size.
                    let bits = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits };
                    self.is_named(number(&self.data, entry)?, member).then_some(bits / 8)
                });
            }
            at = body + body_len(kind, count)?;
        }
        None
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let start = self.strings + offset as usize;
        let end = start + name.len();
        self.data.get(start..end) == Some(name.as_bytes()) && self.data.get(end) == Some(&0)
    }
}

fn number(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// Bytes that follow the common part of a type.
fn body_len(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, forwards, names, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Enumerators, parameters.
        6 | 13 => 8 * count,
        // Arrays.
        3 => 12,
        // Members, sections, wide enumerators.
        4 | 5 | 15 | 19 => 12 * count,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One integer, then a structure with two members.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0pair\0first\0second\0";
        let word = |n: u32| n.to_ne_bytes();
        let mut types = Vec::new();
        for n in [1, 1 << 24, 4, 32] {
            types.extend(word(n));
        }
        for n in [5, (4 << 24) | 2, 16, 10, 1, 0, 16, 1, 64] {
            types.extend(word(n));
        }
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for n in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            data.extend(word(n));
        }
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn a_member_is_found_at_its_offset_and_nothing_else_is() {
        let types = KernelTypes::parse(sample()).unwrap();
        assert_eq!(types.offset("pair", "first"), Some(0));
        assert_eq!(types.offset("pair", "second"), Some(8));
        assert_eq!(types.offset("pair", "third"), None);
        assert_eq!(types.offset("pai", "first"), None);
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        assert!(KernelTypes::parse(vec![0; 64]).is_none());
        assert!(KernelTypes::parse(Vec::new()).is_none());
    }
}
