//! Traffic that goes on while something happens, and what became of it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use xtask::lab::{Namespace, make_room};

/// How long to wait for a connection that has carried nothing for up to ten seconds. TCP repeats what was lost after twice the
/// time that it waited before.
pub const RESUMES: Duration = Duration::from_secs(30);

/// A TCP connection to an echo server that says something every few milliseconds and checks the answer.
#[derive(Debug)]
pub struct Talk {
    stream: TcpStream,
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
        let stream = connected.expect("enters").unwrap_or_else(|error| panic!("no connection to {to}: {error}"));
        stream.set_nodelay(true).expect("no delay");
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            let mut stream = stream.try_clone().expect("clones");
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
        let talk = Self { stream, stop, rounds, thread: Some(thread) };
        assert!(talk.goes_on(Duration::from_secs(3)), "the connection to {to} carries nothing");
        talk
    }

    /// Whether it makes a round within `patience`.
    #[must_use]
    pub fn goes_on(&self, patience: Duration) -> bool {
        // Two: the first may have been on its way.
        let goal = self.rounds.load(Ordering::Relaxed) + 2;
        let end = Instant::now() + patience;
        loop {
            // Whoever had no processor looks once more.
            let is_over = Instant::now() >= end;
            if self.rounds.load(Ordering::Relaxed) >= goal {
                return true;
            }
            if is_over {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for an answer. Nothing is gained by waiting for it.
        let _closed_already = self.stream.shutdown(Shutdown::Both);
        drop(self.thread.take());
    }
}

/// Numbered datagrams to an echo server at a steady pace.
#[derive(Debug)]
pub struct Beat {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<Vec<bool>>,
}

/// What became of a [`Beat`].
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Those whose answer came.
    pub received: u64,
    /// When the first of those was sent that were not answered for the longest time,
    pub outage_began: Instant,
    /// and how long it was to the next one that was. Who waits for a processor loses nothing, and is not in it.
    pub outage: Duration,
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
        make_room(&socket).expect("room for what comes while others have the processor");
        socket.connect(to).expect("a route");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        // How many were sent, once all are.
        let total = Arc::new(AtomicUsize::new(usize::MAX));
        let sender = thread::spawn({
            let (stop, total, socket) = (Arc::clone(&stop), Arc::clone(&total), socket.try_clone().expect("clones"));
            move || {
                let mut sent = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.len() as u64;
                    sent.push(Instant::now());
                    // Counted even if refused: a refusal is a loss.
                    let _refused = socket.send(&number.to_be_bytes());
                    thread::sleep(pace);
                }
                total.store(sent.len(), Ordering::Relaxed);
                sent
            }
        });
        let receiver = thread::spawn(move || answers(&socket, &total));
        Self { stop, sender, receiver }
    }

    /// Ends it.
    ///
    /// # Panics
    /// A thread did.
    #[must_use]
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        tally(&sent, &self.receiver.join().expect("the receiver"))
    }
}

/// Which numbers were answered, in the end.
fn answers(socket: &UdpSocket, total: &AtomicUsize) -> Vec<bool> {
    /// Timeouts in a row behind the last datagram until nothing more is expected.
    const LATE: u32 = 4;
    let (mut answered, mut count, mut late) = (Vec::new(), 0, 0);
    let mut buffer = [0; 16];
    while count < total.load(Ordering::Relaxed) && late < LATE {
        match socket.recv(&mut buffer) {
            Ok(8) => {
                late = 0;
                let number = buffer.first_chunk().map_or(0, |number| u64::from_be_bytes(*number)) as usize;
                answered.resize(answered.len().max(number + 1), false);
                count += usize::from(!std::mem::replace(&mut answered[number], true));
            }
            Ok(_) => {}
            Err(_) if total.load(Ordering::Relaxed) == usize::MAX => {}
            // Answers come in order: behind that to the last one there is no other.
            Err(_) if answered.len() >= total.load(Ordering::Relaxed) => break,
            Err(_) => late += 1,
        }
    }
    answered
}

fn tally(sent: &[Instant], answered: &[bool]) -> Tally {
    let is_answered = |number: usize| answered.get(number).copied().unwrap_or(false);
    let received = (0..sent.len()).filter(|number| is_answered(*number)).count() as u64;
    let (mut outage_began, mut outage) = (sent.first().copied().unwrap_or_else(Instant::now), Duration::ZERO);
    let mut lost_since = None;
    for (number, at) in sent.iter().enumerate() {
        let began = if is_answered(number) { lost_since.take() } else { Some(*lost_since.get_or_insert(*at)) };
        if let Some(began) = began
            && at.duration_since(began) > outage
        {
            (outage_began, outage) = (began, at.duration_since(began));
        }
    }
    Tally { sent: sent.len() as u64, received, outage_began, outage }
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
