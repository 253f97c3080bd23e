//! Real connections between namespaces.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt::RcvBufForce};

use super::Namespace;

/// How often a server looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(200);

/// Echoes whatever comes to one port, over TCP and UDP, IPv4 and IPv6, until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    listeners: Vec<Arc<TcpListener>>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts it in `namespace`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Namespace, port: u16) -> anyhow::Result<Self> {
        let sockets = namespace.enter(|| -> std::io::Result<_> {
            let mut sockets = Vec::new();
            // std makes IPv6 sockets that take IPv4 too, unless the IPv4 one is there first: then only the port's owner differs.
            for address in [IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)] {
                match (TcpListener::bind((address, port)), UdpSocket::bind((address, port))) {
                    (Ok(tcp), Ok(udp)) => sockets.push((tcp, udp)),
                    (Err(error), _) | (_, Err(error)) if sockets.is_empty() => return Err(error),
                    // The dual-stack sockets serve this family already.
                    _ => {}
                }
            }
            Ok(sockets)
        })?;
        let sockets = sockets.with_context(|| format!("cannot listen on port {port} in {}", namespace.name()))?;
        for (_, udp) in &sockets {
            make_room(udp)?;
        }
        let mut server = Self { stop: Arc::default(), listeners: Vec::new(), threads: Vec::new() };
        for (tcp, udp) in sockets {
            let tcp = Arc::new(tcp);
            server.listeners.push(Arc::clone(&tcp));
            let stop = Arc::clone(&server.stop);
            server.threads.push(thread::spawn(move || serve_tcp(&tcp, &stop)));
            let stop = Arc::clone(&server.stop);
            server.threads.push(thread::spawn(move || serve_udp(&udp, &stop)));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // Wakes the thread that waits in accept().
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _its_panic_was_printed = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    while let Ok((mut stream, _)) = listener.accept() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let stop = Arc::clone(stop);
        thread::spawn(move || {
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let mut buffer = [0; 65536];
            while !stop.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) if stream.write_all(&buffer[..length]).is_err() => return,
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => return,
                }
            }
        });
    }
}

/// Room for thousands of datagrams that come while others have the processor; a socket has it for two hundred otherwise.
///
/// # Errors
/// It may not: that takes the rights of root.
pub fn make_room(socket: &UdpSocket) -> std::io::Result<()> {
    Ok(setsockopt(socket, RcvBufForce, &(8 << 20))?)
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let _ = socket.set_read_timeout(Some(PATIENCE));
    let mut buffer = [0; 65536];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // Refused by policy or gone: the client's matter.
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// Whether a TCP connection from `namespace` to an echo server carries data both ways within `patience`.
///
/// # Errors
/// The namespace cannot be entered.
pub fn tcp(namespace: &Namespace, to: SocketAddr, patience: Duration) -> anyhow::Result<bool> {
    namespace.enter(|| {
        let Some(mut stream) = connect(to, patience) else { return false };
        let mut answer = [0; 4];
        let timeouts = stream.set_read_timeout(Some(patience));
        timeouts.is_ok()
            && stream.write_all(b"echo").is_ok()
            && stream.read_exact(&mut answer).is_ok()
            && answer == *b"echo"
    })
}

/// Connects within `patience`. While a neighbour that did not answer in time is given up, the kernel says "unreachable" at once
/// to whoever comes in that moment: it is asked for again by the next attempt.
fn connect(to: SocketAddr, patience: Duration) -> Option<TcpStream> {
    let end = Instant::now() + patience;
    loop {
        let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        match TcpStream::connect_timeout(&to, left) {
            Ok(stream) => return Some(stream),
            Err(error) if error.kind() == ErrorKind::HostUnreachable => thread::sleep(Duration::from_millis(20)),
            Err(_) => return None,
        }
    }
}

/// Whether a UDP datagram from `namespace` to an echo server is answered within `patience`.
///
/// # Errors
/// The namespace cannot be entered.
pub fn udp(namespace: &Namespace, to: SocketAddr, patience: Duration) -> anyhow::Result<bool> {
    namespace.enter(|| {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let Ok(socket) = UdpSocket::bind((any, 0)) else { return false };
        let end = Instant::now() + patience;
        let _ = socket.set_read_timeout(Some(patience / 4));
        while Instant::now() < end {
            let mut answer = [0; 16];
            if socket.send_to(b"echo", to).is_ok() && socket.recv_from(&mut answer).is_ok_and(|(length, _)| length == 4)
            {
                return true;
            }
        }
        false
    })
}

/// Whether an ICMP echo request from `namespace` is answered within `patience` (whole seconds count, one at least).
///
/// # Errors
/// `ping` cannot be started.
pub fn ping(namespace: &Namespace, to: IpAddr, patience: Duration) -> anyhow::Result<bool> {
    let mut command = namespace.command("ping");
    command.args(["-n", "-q", "-c", "1", "-W", &patience.as_secs().max(1).to_string(), &to.to_string()]);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
}
