//! Traffic that goes on while something happens, and what became of it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use xtask::lab::Namespace;

/// A TCP connection to an echo server that says something every few milliseconds and checks the answer.
#[derive(Debug)]
pub struct Talk {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Talk {
    /// Connects and starts talking.
    ///
    /// # Panics
    /// No connection.
    #[must_use]
    pub fn start(namespace: &Namespace, to: SocketAddr) -> Self {
        let connected = namespace.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)));
        let mut stream = connected.expect("enters").unwrap_or_else(|error| panic!("no connection to {to}: {error}"));
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut answer = [0; 8];
                    let word = rounds.load(Ordering::Relaxed).to_be_bytes();
                    if stream.write_all(&word).is_err() || stream.read_exact(&mut answer).is_err() || answer != word {
                        return;
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
        let talk = Self { stop, rounds, thread: Some(thread) };
        assert!(talk.goes_on(Duration::from_secs(3)), "the connection to {to} carries nothing");
        talk
    }

    /// Whether it makes a round within `patience`.
    #[must_use]
    pub fn goes_on(&self, patience: Duration) -> bool {
        // Two: the first may have been on its way.
        let goal = self.rounds.load(Ordering::Relaxed) + 2;
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if self.rounds.load(Ordering::Relaxed) >= goal {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // The thread ends with its next answer, or its timeout: nothing is gained by waiting for it.
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take());
    }
}

/// Numbered datagrams to an echo server at a steady pace.
#[derive(Debug)]
pub struct Beat {
    stop: Arc<AtomicBool>,
    /// When the longest time between two answers began, and how long it was.
    longest: Arc<Mutex<(Instant, Duration)>>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Beat {
    /// Starts sending one datagram every `pace`.
    ///
    /// # Panics
    /// No socket.
    #[must_use]
    pub fn start(namespace: &Namespace, to: SocketAddr, pace: Duration) -> Self {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = namespace.enter(|| UdpSocket::bind((any, 0))).expect("enters").expect("a socket");
        socket.connect(to).expect("a route");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let longest = Arc::new(Mutex::new((Instant::now(), Duration::ZERO)));
        let sender = thread::spawn({
            let (stop, socket) = (Arc::clone(&stop), socket.try_clone().expect("clones"));
            move || {
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    // Counted even if refused: a refusal is a loss.
                    let _refused = socket.send(&sent.to_be_bytes());
                    sent += 1;
                    thread::sleep(pace);
                }
                sent
            }
        });
        let receiver = thread::spawn({
            let (stop, longest) = (Arc::clone(&stop), Arc::clone(&longest));
            move || {
                let (mut received, mut buffer) = (0, [0; 16]);
                let mut last = Instant::now();
                loop {
                    match socket.recv(&mut buffer) {
                        Ok(8) => {
                            received += 1;
                            let gap = (last, last.elapsed());
                            let mut longest = longest.lock().unwrap_or_else(PoisonError::into_inner);
                            if gap.1 > longest.1 {
                                *longest = gap;
                            }
                            last = Instant::now();
                        }
                        Ok(_) => {}
                        Err(_) if stop.load(Ordering::Relaxed) => return received,
                        Err(_) => {}
                    }
                }
            }
        });
        Self { stop, longest, sender, receiver }
    }

    /// The longest time between two answers so far.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.longest().1
    }

    /// When that began, and how long it was.
    #[must_use]
    pub fn longest(&self) -> (Instant, Duration) {
        *self.longest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it: how many were sent, how many came back.
    ///
    /// # Panics
    /// A thread did.
    #[must_use]
    pub fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        (sent, self.receiver.join().expect("the receiver"))
    }
}

/// One flow of datagrams to an echo server: always from the same port.
#[derive(Debug)]
pub struct Conversation {
    socket: UdpSocket,
    asked: AtomicU64,
}

impl Conversation {
    /// Nothing is sent yet.
    ///
    /// # Panics
    /// There is no such namespace, or no way to `to`.
    #[must_use]
    pub fn open(namespace: &Namespace, to: SocketAddr) -> Self {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = namespace.enter(|| UdpSocket::bind((any, 0))).expect("enters").expect("binds");
        socket.connect(to).expect("a way");
        Self { socket, asked: AtomicU64::new(0) }
    }

    /// Whether the next question is answered in time. One is sent, no more.
    ///
    /// # Panics
    /// The time is zero.
    #[must_use]
    pub fn goes_on(&self, patience: Duration) -> bool {
        let question = self.asked.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        self.socket.set_read_timeout(Some(patience)).expect("a timeout");
        if self.socket.send(&question).is_err() {
            return false;
        }
        let (end, mut answer) = (Instant::now() + patience, [0; 8]);
        // Answers to earlier questions may be late.
        while Instant::now() < end {
            match self.socket.recv(&mut answer) {
                Ok(8) if answer == question => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

/// Sends so many bytes to an echo server and counts what comes back.
///
/// # Panics
/// No connection.
#[must_use]
pub fn transfer(to: SocketAddr, length: usize) -> usize {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut writer = stream.try_clone().expect("clones");
    let sender = thread::spawn(move || writer.write_all(&vec![7; length]));
    let mut buffer = vec![0; 1 << 16];
    let mut received = 0;
    while received < length {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => received += count,
        }
    }
    let _ = sender.join();
    received
}
