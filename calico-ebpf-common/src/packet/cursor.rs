//! Reading a packet.

use bytemuck::Pod;

/// A frame, from its Ethernet header on.
pub trait Cursor {
    /// Reads at an offset that is known when this is compiled; in the kernel, straight from memory. `None`: beyond the
    /// end (or beyond what is in one piece).
    fn near<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Reads at any offset.
    fn far<T: Pod>(&self, offset: u32) -> Option<T>;
}

/// A frame in user space.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Cursor for Bytes<'_> {
    fn near<T: Pod>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>())?;
        self.0.get(offset..end).map(bytemuck::pod_read_unaligned)
    }

    fn far<T: Pod>(&self, offset: u32) -> Option<T> {
        self.near(offset as usize)
    }
}
