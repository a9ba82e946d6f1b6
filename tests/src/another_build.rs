//! A natgw with other BPF programs that do the same: what an upgrade meets.
//!
//! Made from the built one, because building it twice would take the time of all other tests: in
//! every program of the embedded objects two neighbouring loads of constants change places.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const ELF: [u8; 7] = *b"\x7fELF\x02\x01\x01";
const EM_BPF: u16 = 247;
const SHF_EXECINSTR: u64 = 4;
const INSTRUCTION: usize = 8;
/// `BPF_ALU64 | BPF_MOV | BPF_K`, `BPF_ALU | BPF_MOV | BPF_K`.
const MOVES: [u8; 2] = [0xb7, 0xb4];

/// Writes the other build of `natgw` to `path`; returns how many programs differ.
pub fn write(natgw: &Path, path: &Path) -> Result<usize> {
    let mut file = fs::read(natgw).with_context(|| format!("cannot read {}", natgw.display()))?;
    let objects: Vec<usize> = file
        .windows(ELF.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == ELF)
        .map(|(at, _)| at)
        .filter(|at| number(&file, at + 18, 2) == Some(u64::from(EM_BPF)))
        .collect();
    ensure!(!objects.is_empty(), "natgw has no BPF object in it");
    let mut changed = 0;
    for object in objects {
        let programs = change(&mut file[object..]).context("a BPF object is cut off")?;
        ensure!(programs > 0, "no program of an object has two constants beside each other");
        changed += programs;
    }
    fs::write(path, file)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(changed)
}

fn change(object: &mut [u8]) -> Option<usize> {
    let (table, size, count) =
        (number(object, 0x28, 8)?, number(object, 0x3a, 2)?, number(object, 0x3c, 2)?);
    let mut changed = 0;
    for section in 0..count {
        let header = (table + section * size) as usize;
        if number(object, header + 8, 8)? & SHF_EXECINSTR == 0 {
            continue;
        }
        let start = number(object, header + 24, 8)? as usize;
        let length = number(object, header + 32, 8)? as usize;
        let code = object.get_mut(start..start + length)?;
        if let Some(first) = independent_pair(code) {
            let (left, right) = code[first..].split_at_mut(INSTRUCTION);
            left.swap_with_slice(&mut right[..INSTRUCTION]);
            changed += 1;
        }
    }
    Some(changed)
}

/// Two constants into different registers, of which the second is nowhere jumped to.
fn independent_pair(code: &[u8]) -> Option<usize> {
    let instructions: Vec<&[u8]> = code.chunks_exact(INSTRUCTION).collect();
    let targets: Vec<i64> =
        (0..).zip(&instructions).filter_map(|(at, it)| target(at, it)).collect();
    let pair = instructions.windows(2).enumerate().find(|(at, pair)| {
        pair.iter().all(|it| MOVES.contains(&it[0]))
            && pair[0][1] & 0xf != pair[1][1] & 0xf
            && !targets.contains(&(*at as i64 + 1))
    });
    pair.map(|(at, _)| at * INSTRUCTION)
}

/// Where a jump leads to.
fn target(at: i64, instruction: &[u8]) -> Option<i64> {
    let (class, operation) = (instruction[0] & 7, instruction[0] >> 4);
    if !matches!(class, 5 | 6) || matches!(operation, 8 | 9) {
        return None;
    }
    let short = i64::from(i16::from_le_bytes([instruction[2], instruction[3]]));
    let long = i64::from(i32::from_le_bytes(instruction[4..].try_into().ok()?));
    // The unconditional jump of class 6 has its way where others have their operand.
    Some(at + 1 + if class == 6 && operation == 0 { long } else { short })
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + length)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::independent_pair;

    #[test]
    fn constants_change_places_only_where_nothing_jumps_between_them_and_both_are_kept() {
        let load = |register: u8| [0xb7, register, 0, 0, 7, 0, 0, 0];
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        let jump_over_one = [0x05, 0, 1, 0, 0, 0, 0, 0];
        assert_eq!(independent_pair(&[load(1), load(2), exit].concat()), Some(0));
        assert_eq!(independent_pair(&[load(1), load(1), exit].concat()), None);
        assert_eq!(independent_pair(&[jump_over_one, load(1), load(2), exit].concat()), None);
    }
}
