//! A server that says whom it sees, and connections that ask it.

use std::{
    cell::Cell,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    str::{self, FromStr},
    thread,
    time::Duration,
};

use xtask::lab::Namespace;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Answers every line over TCP and every datagram over UDP, both IP versions, with the address and port that it came
/// from. A datagram holds two numbers: which question this is, repeated in the answer, and how many bytes the answer
/// shall have. Lives as long as the namespace's sockets do.
///
/// # Panics
/// The port is taken.
pub fn serve(namespace: &Namespace, port: u16) {
    let sockets = namespace.enter(|| {
        let any = [IpAddr::from(Ipv6Addr::UNSPECIFIED), Ipv4Addr::UNSPECIFIED.into()];
        let sockets = any.map(|any| (TcpListener::bind((any, port)), UdpSocket::bind((any, port))));
        // Those for IPv6 take IPv4, too, unless told otherwise.
        sockets.into_iter().filter_map(|(tcp, udp)| Some((tcp.ok()?, udp.ok()?))).collect::<Vec<_>>()
    });
    let sockets = sockets.expect("enters");
    assert!(!sockets.is_empty(), "port {port} of {} is taken", namespace.name());
    for (tcp, udp) in sockets {
        thread::spawn(move || {
            while let Ok((stream, from)) = tcp.accept() {
                thread::spawn(move || answer(stream, from));
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let Some((question, length)) = two::<u64, usize>(&buffer[..length]) else { continue };
                let text = format!("{question} {}", plain(from));
                let _refused = udp.send_to(format!("{text:<length$}").as_bytes(), from);
            }
        });
    }
}

fn answer(mut stream: TcpStream, from: SocketAddr) {
    let Ok(reader) = stream.try_clone() else { return };
    for _line in BufReader::new(reader).lines().map_while(Result::ok) {
        if writeln!(stream, "{}", plain(from)).is_err() {
            return;
        }
    }
}

/// The first two words of a datagram; `None` if they are not such.
fn two<A: FromStr, B: FromStr>(datagram: &[u8]) -> Option<(A, B)> {
    let text = str::from_utf8(datagram).ok()?;
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// An IPv4 address as such, also where a socket for IPv6 took it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A TCP connection to a mirror.
#[derive(Debug)]
pub struct TcpGlance {
    stream: TcpStream,
}

impl TcpGlance {
    /// Connects; `None` if that fails.
    ///
    /// # Panics
    /// The namespace cannot be entered.
    #[must_use]
    pub fn open(namespace: &Namespace, to: SocketAddr) -> Option<Self> {
        let stream = namespace.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("enters").ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(Self { stream })
    }

    /// Whom the mirror sees; `None` if nothing comes back.
    #[must_use]
    pub fn seen(&mut self) -> Option<SocketAddr> {
        writeln!(self.stream).ok()?;
        let mut line = String::new();
        BufReader::new(&self.stream).read_line(&mut line).ok()?;
        line.trim().parse().ok()
    }
}

/// A UDP socket that talks to a mirror, and to nobody else.
#[derive(Debug)]
pub struct UdpGlance {
    socket: UdpSocket,
    /// How many questions were asked: an answer that comes late must not pass for one to a later question.
    questions: Cell<u64>,
}

impl UdpGlance {
    /// Makes the socket.
    ///
    /// # Panics
    /// There is no way to the mirror.
    #[must_use]
    pub fn open(namespace: &Namespace, to: SocketAddr) -> Self {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE / 3)).map(|()| socket)
        });
        Self { socket: socket.expect("enters").expect("a socket"), questions: Cell::new(0) }
    }

    /// Whom the mirror sees, asked and answering with so many bytes; `None` if nothing comes back.
    #[must_use]
    pub fn seen(&self, length: usize) -> Option<SocketAddr> {
        self.asked(length, length)
    }

    /// The same, where question and answer are not of the same length.
    #[must_use]
    pub fn asked(&self, question: usize, answer: usize) -> Option<SocketAddr> {
        (0..3).find_map(|_| {
            self.questions.update(|questions| questions + 1);
            let text = format!("{} {answer}", self.questions.get());
            let _refused = self.socket.send(format!("{text:<question$}").as_bytes());
            self.answered(answer)
        })
    }

    /// What the mirror answers to the last question, in at least so many bytes.
    fn answered(&self, length: usize) -> Option<SocketAddr> {
        let mut buffer = [0; 65536];
        while let Ok(received) = self.socket.recv(&mut buffer) {
            if let Some((question, seen)) = two::<u64, SocketAddr>(&buffer[..received])
                && question == self.questions.get()
                && received >= length
            {
                return Some(seen);
            }
        }
        None
    }
}
