//! What a program reaches of a frame by itself, the same on both hooks: its linear part.

use nat_common::{checksum::Sum, env::SUMMED};

use crate::frame::Frame;

/// An offset is a header's place: never beyond the largest pair of IP headers with options.
const MAX_OFFSET: usize = 511;

impl Frame {
    /// See [`nat_common::env::Packet::get`].
    #[inline(always)]
    pub(crate) fn header<T: bytemuck::Pod>(&mut self, offset: usize) -> Option<&mut T> {
        const { assert!(align_of::<T>() == 1) };
        if offset > MAX_OFFSET {
            return None;
        }
        let start = self.ctx.data() + offset;
        if start + size_of::<T>() > self.ctx.data_end() {
            return None;
        }
        // SAFETY: no frame is at 0; said here, or whoever gets it tests for that.
        unsafe { core::hint::assert_unchecked(start != 0) };
        // SAFETY: the range was just checked against the end of the frame's linear part, `T` is
        // valid for any bits and needs no alignment, and the borrow of `self` keeps the frame
        // from being reshaped meanwhile.
        Some(unsafe { &mut *(start as *mut T) })
    }

    /// What stands beyond the headers.
    #[inline(always)]
    fn far<T: bytemuck::Pod>(&self, offset: usize) -> Option<T> {
        const { assert!(align_of::<T>() == 1) };
        let start = self.ctx.data() + offset;
        if start + size_of::<T>() > self.ctx.data_end() {
            return None;
        }
        // SAFETY: checked against the end of the frame; `T` takes any bits at any address.
        Some(unsafe { *(start as *const T) })
    }

    /// See [`nat_common::env::Packet::sum`].
    #[inline(always)]
    pub(crate) fn sum_of(&self, offset: usize, len: usize) -> Option<Sum> {
        const CHUNK: usize = 32;
        if offset > MAX_OFFSET || len > SUMMED {
            return None;
        }
        let mut sum = Sum::ZERO;
        let mut at = 0;
        for _ in 0..SUMMED / CHUNK {
            if at + CHUNK > len {
                break;
            }
            let words = self.far::<[[u8; 4]; CHUNK / 4]>(offset + at)?;
            for word in words {
                sum = sum.add4(word);
            }
            at += CHUNK;
        }
        for _ in 0..CHUNK / 2 {
            if at + 2 > len {
                break;
            }
            sum = sum.add(self.far::<[u8; 2]>(offset + at)?);
            at += 2;
        }
        if at < len {
            // With the byte before it: the check for a single one is compiled into a comparison
            // that tells the verifier nothing.
            let [_, last] = self.far::<[u8; 2]>((offset + at).checked_sub(1)?)?;
            sum = sum.add([last, 0]);
        }
        Some(sum)
    }
}
