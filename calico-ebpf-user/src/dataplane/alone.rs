//! One process for each network namespace: two would hang their programs on the same hooks and undo each other's routes.
//!
//! The instances of one namespace have different pin directories, and so different locks. What they share is the namespace, and
//! with it the names of abstract sockets: the kernel gives such a name to one socket of a namespace, and takes it back when its
//! process ends, however it ends.

use std::{
    io::{self, ErrorKind},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

use rustix::net::sockopt::socket_peercred;

use super::{
    error::{DataplaneError, Result},
    patiently,
};

/// The name of the socket.
const NAME: &str = "calico-ebpf";

/// The network namespace is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Alone {
    _socket: Option<UnixListener>,
}

/// Claims the network namespace of the calling thread.
///
/// # Errors
/// Another process has it.
pub(crate) fn claim() -> Result<Alone> {
    let failed = || DataplaneError::io(format!("take the name @{NAME}"));
    let address = SocketAddr::from_abstract_name(NAME).map_err(failed())?;
    let is_taken = |error: &io::Error| error.kind() == ErrorKind::AddrInUse;
    match patiently(|| UnixListener::bind_addr(&address), is_taken) {
        Ok(socket) => Ok(Alone { _socket: Some(socket) }),
        Err(error) if is_taken(&error) => match holder(&address) {
            Ok(holder) if holder.uid.is_root() => {
                Err(DataplaneError::NotAlone { pid: holder.pid.as_raw_nonzero().get() })
            }
            // Names are free for all, and who is not root cannot run a data path.
            holder => {
                tracing::warn!(
                    ?holder,
                    "the name @{NAME} is taken by another program: a second data path here goes unnoticed"
                );
                Ok(Alone { _socket: None })
            }
        },
        Err(error) => Err(failed()(error)),
    }
}

/// Who listens there.
fn holder(address: &SocketAddr) -> io::Result<rustix::net::UCred> {
    Ok(socket_peercred(UnixStream::connect_addr(address)?)?)
}
