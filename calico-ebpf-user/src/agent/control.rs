//! The control socket: other commands talk to the running process here, one JSON object a line each way.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use crate::{
    dataplane::{Instance, patiently},
    observe::status::Status,
    policy::{
        flow::{Flow, Verdict},
        staged::StagedRules,
    },
};

/// Directory of the sockets.
const RUN_DIR: &str = "/run/calico-ebpf";
/// A request is shorter than this.
const MAX_REQUEST: u64 = 1 << 20;
/// Flows that may be asked about in one request.
pub const MAX_FLOWS: usize = 1000;

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// How it is going.
    Status,
    /// Read the files again.
    Reload {
        /// Bring the old set back after so many seconds without [`Request::Confirm`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm: Option<u32>,
    },
    /// Keep what a reload with confirmation put in force.
    Confirm,
    /// What the staged policies would change.
    Staged,
    /// What would become of these flows with the staged policies applied.
    Pending {
        /// At most [`MAX_FLOWS`].
        flows: Vec<Flow>,
    },
}

/// The answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Done.
    pub ok: bool,
    /// What was done, or why not.
    #[serde(default)]
    pub message: String,
    /// For [`Request::Status`].
    pub status: Option<Status>,
    /// For [`Request::Staged`]: workloads whose rules would be others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<StagedRules>,
    /// For [`Request::Pending`]: the verdicts in the order of the flows; none where there are no staged policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Verdict>,
}

/// A request on its way to the agent's loop.
#[derive(Debug)]
pub struct Call {
    /// What is asked for.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// The listening end. The socket's file goes with it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Starts to listen; the caller holds the instance's lock, so that a socket that is there is a dead one's.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(instance: &Instance, calls: mpsc::Sender<Call>) -> anyhow::Result<Self> {
        let path = socket(instance);
        let listener = bind(&path).with_context(|| format!("cannot make the control socket {}", path.display()))?;
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(serve(stream, calls.clone()))),
                    Err(error) => {
                        tracing::warn!(%error, "the control socket cannot accept a command");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(Self { path, task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// The instance's socket.
#[must_use]
pub fn socket(instance: &Instance) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{}.sock", instance.name()))
}

/// Removes the socket of a process that was killed, and the directory with the last one.
pub fn remove(instance: &Instance) {
    // Neither need be there.
    let _ = fs::remove_file(socket(instance));
    let _ = fs::remove_dir(RUN_DIR);
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut tries = 0;
    loop {
        fs::create_dir_all(RUN_DIR)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Mode 0600 from the first moment on.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        match listener {
            // Another instance's purge removes the directory when nothing is in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 10 => tries += 1,
            listener => return listener,
        }
    }
}

async fn serve(mut stream: tokio::net::UnixStream, calls: mpsc::Sender<Call>) {
    let (read, mut write) = stream.split();
    let mut lines = tokio::io::BufReader::new(read);
    let mut line = String::new();
    loop {
        line.clear();
        match (&mut lines).take(MAX_REQUEST).read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let reply = match serde_json::from_str(&line) {
            Ok(request) => ask(&calls, request).await,
            Err(error) => refusal(format!("not a request that this version knows: {error}")),
        };
        // A `Reply` has nothing that JSON cannot express.
        let Ok(mut text) = serde_json::to_vec(&reply) else { return };
        text.push(b'\n');
        if write.write_all(&text).await.is_err() {
            return;
        }
    }
}

async fn ask(calls: &mpsc::Sender<Call>, request: Request) -> Reply {
    let (reply, answer) = oneshot::channel();
    let sent = calls.send(Call { request, reply }).await.is_ok();
    match answer.await {
        Ok(reply) if sent => reply,
        _ => refusal("the process is ending"),
    }
}

/// An answer that says yes.
#[must_use]
pub fn done(message: impl Into<String>) -> Reply {
    Reply { ok: true, message: message.into(), ..Reply::default() }
}

/// An answer that says no.
#[must_use]
pub fn refusal(message: impl Into<String>) -> Reply {
    Reply { ok: false, message: message.into(), ..Reply::default() }
}

/// Asks the instance's running process; `None`: there is none.
///
/// # Errors
/// The socket is there and cannot be used, or the answer makes no sense.
pub fn call(instance: &Instance, request: &Request) -> anyhow::Result<Option<Reply>> {
    let path = socket(instance);
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    // Of a process that was killed a child may still listen for a moment: then the connection breaks.
    let is_broken = |error: &io::Error| {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
    };
    match patiently(|| exchange(&path, &text), is_broken) {
        Ok(answer) => serde_json::from_str(&answer)
            .map(Some)
            .with_context(|| format!("the process behind {} answers what this version does not know", path.display())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            anyhow::bail!("{}: permission denied: this command needs root", path.display())
        }
        Err(error) => {
            Err(error).with_context(|| format!("the process behind {} does not answer or has ended", path.display()))
        }
    }
}

fn exchange(path: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_lines_of_json() {
        let text = |request| serde_json::to_string(&request).expect("JSON");
        assert_eq!(text(Request::Status), r#"{"command":"status"}"#);
        assert_eq!(text(Request::Reload { confirm: Some(5) }), r#"{"command":"reload","confirm":5}"#);
        let parsed: Request = serde_json::from_str(r#"{"command":"reload"}"#).expect("request");
        assert_eq!(parsed, Request::Reload { confirm: None });
    }

    #[test]
    fn a_full_request_has_room() {
        let address = std::net::IpAddr::from([0xffff_u16; 8]);
        let flow = Flow {
            source: address,
            destination: address,
            protocol: u8::MAX,
            source_port: u16::MAX,
            destination_port: u16::MAX,
        };
        let request = serde_json::to_string(&Request::Pending { flows: vec![flow; MAX_FLOWS] }).expect("JSON");
        assert!((request.len() as u64) < MAX_REQUEST);
    }
}
