//! Reading a packet.

use bytemuck::Pod;

/// A frame, from its Ethernet header on.
pub trait Cursor {
    /// What is at an offset that is known when this is compiled; in the kernel, the packet's own memory: a copy might go by
    /// the stack, where the verifier allows only aligned access. `None`: beyond the end (or beyond what is in one piece).
    ///
    /// `T` has to be of alignment 1.
    fn near<T: Pod>(&self, offset: usize) -> Option<&T>;

    /// What is at any offset; in the kernel a copy, which the next call overwrites.
    ///
    /// `T` has to be of alignment 1.
    fn far<T: Pod>(&self, offset: u32) -> Option<&T>;
}

/// A frame in user space.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Cursor for Bytes<'_> {
    fn near<T: Pod>(&self, offset: usize) -> Option<&T> {
        const { assert!(align_of::<T>() == 1) };
        let end = offset.checked_add(size_of::<T>())?;
        self.0.get(offset..end).map(bytemuck::from_bytes)
    }

    fn far<T: Pod>(&self, offset: u32) -> Option<&T> {
        self.near(offset as usize)
    }
}
