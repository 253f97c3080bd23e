//! The loader's only unsafe code: `bpf(2)` on maps and programs, memory-mapped arrays, `membarrier(2)`, options of sockets.
//!
//! Everything exported is safe: sizes are checked here against what the kernel says of the object.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use bytemuck::{Pod, Zeroable};
use tokio::io::unix::AsyncFd;

// Commands, flags and attribute layouts: include/uapi/linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_TEST_RUN: u32 = 10;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_DETACH: u32 = 34;
/// An attach type.
const BPF_XDP: u32 = 37;
const BPF_F_RDONLY: u32 = 1 << 3;
const BPF_F_MMAPABLE: u32 = 1 << 10;

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct ElemAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// `BPF_MAP_TYPE_PERCPU_ARRAY`, the one per-CPU type in use.
const PER_CPU_ARRAY: u32 = 6;

/// A map. Byte slices are keys and values in the kernel's layout.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of a value as system calls transfer it: per-CPU values have one copy for each possible CPU.
    value_bytes: usize,
}

impl Map {
    /// Opens a pinned map.
    pub(crate) fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        Self::from_fd(object_open(path, read_only)?)
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let mut info = MapInfo::zeroed();
        object_info(fd.as_raw_fd(), bytemuck::bytes_of_mut(&mut info))?;
        let value_size = info.value_size as usize;
        let value_bytes =
            if info.kind == PER_CPU_ARRAY { value_size.next_multiple_of(8) * possible_cpus()? } else { value_size };
        Ok(Self { fd, info, value_bytes })
    }

    pub(crate) fn info(&self) -> MapInfo {
        self.info
    }

    pub(crate) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    fn check(&self, key: &[u8], value_len: usize) -> io::Result<()> {
        if key.len() != self.info.key_size as usize || value_len != self.value_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "key or value of another size than the map's"));
        }
        Ok(())
    }

    /// Reads the value of a key; false if there is none.
    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key, value.len())?;
        let mut attr = ElemAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            ..ElemAttr::zeroed()
        };
        // SAFETY: `check` has made sure that key and value are as long as the kernel reads and writes.
        found(unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) })
    }

    /// Sets the value of a key.
    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key, value.len())?;
        let mut attr = ElemAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            ..ElemAttr::zeroed()
        };
        // SAFETY: as in `lookup`; the kernel only reads.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Deletes a key; false if it was not there.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key, self.value_bytes)?;
        let mut attr = ElemAttr { map_fd: self.fd.as_raw_fd() as u32, key: key.as_ptr() as u64, ..ElemAttr::zeroed() };
        // SAFETY: `check` has made sure of the key's length.
        found(unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) })
    }

    /// The key after `key` (the first one without) in the map's own order; false at the end.
    pub(crate) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        self.check(next, self.value_bytes)?;
        if let Some(key) = key {
            self.check(key, self.value_bytes)?;
        }
        let mut attr = ElemAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            value: next.as_mut_ptr() as u64,
            ..ElemAttr::zeroed()
        };
        // SAFETY: both keys are of the map's key size; null asks for the first.
        found(unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) })
    }

    /// Sets many values at once; one by one where the kernel cannot (tries before 5.19, any map before 5.6).
    pub(crate) fn update_many(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let (key_size, value_size) = (self.info.key_size as usize, self.value_bytes);
        let count = keys.len() / key_size.max(1);
        if count * key_size != keys.len() || count * value_size != values.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "keys and values do not pair up"));
        }
        if count > 8 {
            let mut attr = BatchAttr {
                keys: keys.as_ptr() as u64,
                values: values.as_ptr() as u64,
                count: u32::try_from(count).map_err(io::Error::other)?,
                map_fd: self.fd.as_raw_fd() as u32,
                ..BatchAttr::zeroed()
            };
            // SAFETY: both buffers hold `count` elements of the map's sizes; the kernel only reads them.
            match unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) } {
                Err(error) if unsupported(&error) => {}
                done => return done.map(drop),
            }
        }
        for (key, value) in keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)) {
            self.update(key, value)?;
        }
        Ok(())
    }

    /// Calls `visit` for each key and value. Entries that come and go meanwhile may be missed; none is visited twice
    /// while the map is not written to.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        match self.for_each_batch(&mut visit) {
            Err(error) if unsupported(&error) => self.for_each_single(visit),
            done => done,
        }
    }

    /// With `BPF_MAP_LOOKUP_BATCH`; an unsupported map fails before the first visit.
    fn for_each_batch(&self, visit: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let (key_size, value_size) = (self.info.key_size as usize, self.value_bytes);
        // Room for a whole bucket: a batch never splits one.
        let mut room = 4096_usize.min(self.info.max_entries as usize).max(1);
        // The position is a u32 for hash maps and arrays, a key for tries.
        let mut position = vec![0_u8; key_size.max(4)];
        let mut next = position.clone();
        let (mut keys, mut values) = (vec![0; key_size * room], vec![0; value_size * room]);
        let mut first = true;
        loop {
            let mut attr = BatchAttr {
                in_batch: if first { 0 } else { position.as_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: room as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                ..BatchAttr::zeroed()
            };
            // SAFETY: the buffers hold `room` elements of the map's sizes, the positions the larger of a key and 4 bytes.
            let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let end = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    keys.resize(key_size * room, 0);
                    values.resize(value_size * room, 0);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = (attr.count as usize).min(room);
            for (key, value) in keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(count) {
                visit(key, value);
            }
            if end {
                return Ok(());
            }
            std::mem::swap(&mut position, &mut next);
            first = false;
        }
    }

    fn for_each_single(&self, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut key = vec![0; self.info.key_size as usize];
        let mut next = key.clone();
        let mut value = vec![0; self.value_bytes];
        let mut more = self.next_key(None, &mut key)?;
        // A map that is written to meanwhile may send us round in circles.
        let mut left = u64::from(self.info.max_entries) * 2;
        while more && left > 0 {
            if self.lookup(&key, &mut value)? {
                visit(&key, &value);
            }
            more = self.next_key(Some(&key), &mut next)?;
            std::mem::swap(&mut key, &mut next);
            left -= 1;
        }
        Ok(())
    }

    /// Maps an array with `BPF_F_MMAPABLE` into memory.
    pub(crate) fn map_memory<T: Pod>(&self) -> io::Result<Mapping<T>> {
        let stride = (self.info.value_size as usize).next_multiple_of(8);
        if self.info.flags & BPF_F_MMAPABLE == 0 || size_of::<T>() != stride || align_of::<T>() > 8 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the map is of another layout"));
        }
        let entries = self.info.max_entries as usize;
        let bytes = stride * entries;
        // SAFETY: a new shared mapping at an address of the kernel's choice; nothing else is there.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast::<T>()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Mapping { base, entries })
    }
}

/// The entries of an array map in memory, shared with the kernel programs (and with nobody else who writes).
///
/// Programs read while we write, so everything goes through aligned atomic accesses of 4 or 8 bytes.
#[derive(Debug)]
pub(crate) struct Mapping<T> {
    base: NonNull<T>,
    entries: usize,
}

impl<T: Pod> Mapping<T> {
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// The atomic word at `offset` bytes in entry `index`.
    fn word(&self, index: usize, offset: usize) -> io::Result<&AtomicU32> {
        if index >= self.entries || offset + 4 > size_of::<T>() || !offset.is_multiple_of(4) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "outside of the mapped array"));
        }
        // SAFETY: inside the mapping, which lives as long as `self`; a page-aligned base, a stride that is a multiple of
        // 8 and an offset that is one of 4 make it aligned. All accesses, the programs' too, are single instructions.
        Ok(unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(index).cast::<u8>().add(offset).cast::<u32>()) })
    }

    /// Stores one 32-bit field; programs that see it see all earlier stores.
    pub(crate) fn store_u32(&self, index: usize, offset: usize, value: u32) -> io::Result<()> {
        self.word(index, offset)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Reads one 32-bit field.
    pub(crate) fn load_u32(&self, index: usize, offset: usize) -> io::Result<u32> {
        Ok(self.word(index, offset)?.load(Ordering::Acquire))
    }

    /// Stores bytes at `offset` of an entry, 4 at a time (both multiples of 4).
    pub(crate) fn store_bytes(&self, index: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
        for (i, word) in bytes.chunks(4).enumerate() {
            let word = <[u8; 4]>::try_from(word)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a multiple of 4 bytes"))?;
            self.word(index, offset + 4 * i)?.store(u32::from_ne_bytes(word), Ordering::Relaxed);
        }
        std::sync::atomic::fence(Ordering::Release);
        Ok(())
    }

    /// Reads an entry; word by word, so a writer in between may be seen half.
    pub(crate) fn load(&self, index: usize) -> io::Result<T> {
        let mut entry = T::zeroed();
        for (i, word) in bytemuck::bytes_of_mut(&mut entry).as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *word = self.word(index, 4 * i)?.load(Ordering::Acquire).to_ne_bytes();
        }
        Ok(entry)
    }

    /// Stores whole entries from `first` on, 8 bytes at a time. For entries that no program reads yet.
    pub(crate) fn store(&self, first: usize, entries: &[T]) -> io::Result<()> {
        if first.checked_add(entries.len()).is_none_or(|end| end > self.entries) || !size_of::<T>().is_multiple_of(8) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "outside of the mapped array"));
        }
        let bytes: &[u8] = bytemuck::cast_slice(entries);
        for (i, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_ne_bytes(*word);
            // SAFETY: inside the mapping, as checked above, and aligned to 8.
            let target =
                unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(first).cast::<u8>().add(8 * i).cast::<u64>()) };
            target.store(word, Ordering::Relaxed);
        }
        std::sync::atomic::fence(Ordering::Release);
        Ok(())
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: exactly what `map_memory` mapped; nobody holds a reference any more.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.entries * size_of::<T>());
        }
    }
}

/// Opens a pinned object.
pub(crate) fn object_open(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: 0, flags: if read_only { BPF_F_RDONLY } else { 0 } };
    // SAFETY: a path with its terminator; on success the kernel gives a new descriptor, which is ours alone.
    unsafe {
        let fd = bpf(BPF_OBJ_GET, &mut attr)?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Pins an object.
pub(crate) fn object_pin(fd: RawFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: fd as u32, flags: 0 };
    // SAFETY: a path with its terminator, which the kernel only reads.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Fills `info` with the head of the kernel's information about an object.
fn object_info(fd: RawFd, info: &mut [u8]) -> io::Result<()> {
    let mut attr = InfoAttr { fd: fd as u32, len: info.len() as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: the kernel writes no more than `len` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// Hangs an XDP program on an interface, as long as the link lives. `flags`: in which mode (`XDP_FLAGS_*`).
pub(crate) fn xdp_link(program: RawFd, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr { prog_fd: program as u32, target_ifindex: ifindex, attach_type: BPF_XDP, flags };
    // SAFETY: no pointers; on success the kernel gives a new descriptor, which is ours alone.
    unsafe {
        let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Puts another program into a link; no packet is missed.
pub(crate) fn link_update(link: RawFd, program: RawFd) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: link as u32, new_prog_fd: program as u32, flags: 0, old_prog_fd: 0 };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link off what it hangs on at once, where the kernel would do it some time after its pin is removed.
pub(crate) fn link_detach(link: RawFd) -> io::Result<()> {
    let mut attr = link as u32;
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// Has a device receive a multicast address of the link, or no longer. That it does already (or not) is no error.
pub(crate) fn receive_multicast(interface: &str, mac: [u8; 6], receive: bool) -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes().take(room)) {
        *place = byte as libc::c_char;
    }
    let mut address = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    for (place, byte) in address.sa_data.iter_mut().zip(mac) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    let command = if receive { libc::SIOCADDMULTI } else { libc::SIOCDELMULTI };
    // SAFETY: a whole request with a name that ends with a zero, which the kernel only reads.
    if unsafe { libc::ioctl(socket.as_raw_fd(), command as _, &raw mut request) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => Ok(()),
        error => Err(error),
    }
}

/// Interface that a pinned TCX or XDP link hangs on (0 once it is detached), and its program's id.
pub(crate) fn link_target(fd: RawFd) -> io::Result<(u32, u32)> {
    // struct bpf_link_info: type, id, prog_id, padding, then for both: ifindex.
    let mut info = [0_u32; 6];
    object_info(fd, bytemuck::bytes_of_mut(&mut info))?;
    Ok((info[4], info[2]))
}

/// Id of a program.
pub(crate) fn program_id(fd: RawFd) -> io::Result<u32> {
    let mut info = [0_u32; 2];
    object_info(fd, bytemuck::bytes_of_mut(&mut info))?;
    Ok(info[1])
}

/// Runs a TC program on an empty frame and returns what it returned the last of `repeat` times.
pub(crate) fn program_run(fd: RawFd, repeat: u32) -> io::Result<u32> {
    let frame = [0_u8; 64];
    let mut attr = TestRunAttr {
        prog_fd: fd as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat,
        ..TestRunAttr::zeroed()
    };
    // SAFETY: the kernel reads the frame and writes nothing back but the attribute.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval)
}

/// Runs a TC program once on a frame, which it may change but not lengthen, and returns what it returned.
pub(crate) fn program_run_on(fd: RawFd, frame: &mut [u8]) -> io::Result<u32> {
    let mut attr = TestRunAttr {
        prog_fd: fd as u32,
        data_size_in: frame.len() as u32,
        data_size_out: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: frame.as_mut_ptr() as u64,
        repeat: 1,
        ..TestRunAttr::zeroed()
    };
    // SAFETY: the kernel copies the frame before the program runs, and afterwards writes no more than `data_size_out` bytes.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval)
}

/// Waits until every program that runs now has ended: an RCU grace period.
pub(crate) fn grace_period() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Refused where CPUs run without a tick (nohz_full) and before 4.16: programs end within microseconds.
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// A socket that sees each frame of an EtherType (or `ETH_P_ALL`) that comes in on an interface, before any TC program, and sends frames as they are. Needs a
/// tokio runtime.
pub(crate) fn packet_socket(ifindex: u32, ethertype: u16) -> io::Result<AsyncFd<OwnedFd>> {
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers. Without a protocol it receives nothing before it is bound.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is an integer, of the size that the kernel is told.
    let set = unsafe {
        libc::setsockopt(fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, std::ptr::from_ref(&on).cast(), length)
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: an address of the size that the kernel is told.
    if unsafe { libc::bind(fd, std::ptr::from_ref(&address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: an open descriptor that nobody else has; the socket owns it until it is dropped.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

/// How many copies per-CPU values have.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus()
        .map(|cpus| cpus.get() as usize)
        .map_err(|(path, error)| io::Error::other(format!("{path}: {error}")))
}

/// `bpf(2)`.
///
/// # Safety
/// The pointers and lengths in `attr` must be valid for what `command` does with them.
unsafe fn bpf<A: Pod>(command: u32, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a plain structure of this size; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// "No such entry" is an answer, not an error.
fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The kernel does not know the command, or not for this kind of map.
fn unsupported(error: &io::Error) -> bool {
    // 524 is the kernel's ENOTSUPP, which user space should never see but does.
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | 524))
}

/// The cookie of the network namespace that a socket is of; `None` before Linux 5.14.
pub(crate) fn namespace_cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let place = std::ptr::from_mut(&mut cookie).cast();
    // SAFETY: the kernel writes at most as many bytes as it is told there are.
    let got = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, place, &raw mut length)
    };
    (got == 0).then_some(cookie)
}
