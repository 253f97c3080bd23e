//! What the kernel programs and the loader share.
//!
//! [`abi`] is the layout of every map. The other modules are the logic of the data path, free of I/O and generic over
//! the tables and the packet, so that the very same functions run in the kernel, in `explain`, and in tests.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod abi;
pub mod judge;
pub mod nets;
pub mod packet;
pub mod track;
