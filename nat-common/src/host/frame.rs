//! A frame as a vector of bytes.

use std::vec::Vec;

use bytemuck::Pod;

use crate::{
    checksum::Sum,
    env::{Packet, SUMMED},
};

/// Beyond it the BPF programs do not look, and so neither does this.
const MAX_OFFSET: usize = 511;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFrame {
    pub bytes: Vec<u8>,
    pub ingress: u32,
}

impl HostFrame {
    #[must_use]
    pub fn new(ingress: u32, bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), ingress }
    }
}

impl Packet for HostFrame {
    fn get<T: Pod>(&mut self, offset: usize) -> Option<&mut T> {
        const { assert!(align_of::<T>() == 1) };
        if offset > MAX_OFFSET {
            return None;
        }
        let bytes = self.bytes.get_mut(offset..offset + size_of::<T>())?;
        bytemuck::try_from_bytes_mut(bytes).ok()
    }

    fn sum(&mut self, offset: usize, len: usize) -> Option<Sum> {
        if offset > MAX_OFFSET || len > SUMMED {
            return None;
        }
        let bytes = self.bytes.get(offset..offset + len)?;
        let byte = |pair: &[u8], place| pair.get(place).copied().unwrap_or_default();
        Some(bytes.chunks(2).fold(Sum::ZERO, |sum, pair| sum.add([byte(pair, 0), byte(pair, 1)])))
    }

    fn len(&mut self) -> u32 {
        self.bytes.len() as u32
    }

    fn holds(&mut self, len: usize) -> bool {
        self.bytes.len() >= len
    }

    fn at_hand(&mut self) -> usize {
        self.bytes.len()
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn reshape(&mut self, front: usize, len: usize) -> bool {
        self.bytes.resize(len, 0);
        self.bytes.splice(..0, core::iter::repeat_n(0, front));
        true
    }

    fn extend(&mut self, front: usize) -> bool {
        self.bytes.splice(..0, core::iter::repeat_n(0, front));
        true
    }

    fn strip(&mut self, front: usize) -> bool {
        // The kernel keeps an Ethernet header.
        if front + 14 > self.bytes.len() {
            return false;
        }
        self.bytes.drain(..front);
        true
    }
}
