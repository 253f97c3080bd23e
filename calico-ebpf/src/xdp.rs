//! A frame before it is a packet of the kernel's.

use core::ptr;

use aya_ebpf::bindings::xdp_md;
use bytemuck::Pod;
use calico_ebpf_common::packet::{Cursor, EthernetHeader};

use crate::work::{buffer, opaque};

/// Further into a frame no header is looked for: the verifier has to know an end.
const FAR: u64 = 1024;

/// A frame in an XDP program. Of one in several buffers, the first of them.
#[derive(Clone, Copy)]
pub(crate) struct Frame(*mut xdp_md);

impl Frame {
    /// For a function that was given the context itself.
    #[inline(always)]
    pub(crate) fn of(context: *mut xdp_md) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub(crate) fn raw_context(&self) -> *mut xdp_md {
        self.0
    }

    #[inline(always)]
    fn raw(&self) -> &xdp_md {
        // SAFETY: the context is valid as long as the program runs, and only `Frame` has it.
        unsafe { &*self.0 }
    }

    /// The device that it came in by.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.raw().ingress_ifindex
    }

    /// What is in it. Zero where there is no whole header.
    #[inline(always)]
    pub(crate) fn ether_type(&self) -> [u8; 2] {
        match self.near::<EthernetHeader>(0) {
            Some(ethernet) => ethernet.ether_type,
            None => [0; 2],
        }
    }

    /// Writes in place. `None`: beyond what is in one piece.
    #[inline(always)]
    pub(crate) fn put<T: Pod>(&self, offset: usize, value: T) -> Option<()> {
        let (data, end) = (self.raw().data as usize, self.raw().data_end as usize);
        if data + offset + size_of::<T>() > end {
            return None;
        }
        // SAFETY: within the frame, as just compared.
        unsafe { ptr::write_unaligned((data + offset) as *mut T, value) };
        Some(())
    }

    /// Writes a word into the room that was made in front of the frame.
    #[inline(always)]
    pub(crate) fn put_in_front(&self, word: u32) {
        let (front, data) = (self.raw().data_meta as usize, self.raw().data as usize);
        if front + size_of::<u32>() <= data {
            // SAFETY: within the room in front of the frame, as just compared.
            unsafe { ptr::write_unaligned(front as *mut u32, word) };
        }
    }
}

impl Cursor for Frame {
    #[inline(always)]
    fn near<T: Pod>(&self, offset: usize) -> Option<&T> {
        const { assert!(align_of::<T>() == 1) };
        let (data, end) = (self.raw().data as usize, self.raw().data_end as usize);
        if data + offset + size_of::<T>() > end {
            return None;
        }
        // SAFETY: within the frame, as just compared, until a helper moves it; `Pod` has no invalid bytes.
        Some(unsafe { &*((data + offset) as *const T) })
    }

    #[inline(always)]
    fn far<T: Pod>(&self, offset: u32) -> Option<&T> {
        const { assert!(size_of::<T>() <= 64 && align_of::<T>() == 1) };
        let buffer = buffer()?;
        let offset = opaque(u64::from(offset));
        if offset > FAR {
            return None;
        }
        let (data, end) = (self.raw().data as usize, self.raw().data_end as usize);
        let start = data + offset as usize;
        if start + size_of::<T>() > end {
            return None;
        }
        // SAFETY: within the frame, as just compared; the buffer has room for it. `Pod` has no invalid bytes.
        unsafe {
            let header = (&raw mut (*buffer).header).cast::<T>();
            ptr::copy_nonoverlapping(start as *const T, header, 1);
            Some(&*header)
        }
    }
}
