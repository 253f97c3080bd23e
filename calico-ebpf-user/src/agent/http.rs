//! `/metrics`, `/liveness` and `/readiness` over HTTP/1.1: one request a connection, `GET` and `HEAD` only.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// A request's head is shorter than this.
const MAX_HEAD: usize = 8192;
/// A client has this long for its request and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients at a time; more wait for their turn.
const MAX_CLIENTS: usize = 16;

/// What is served.
pub trait Site: Send + Sync + 'static {
    /// The metrics in Prometheus' text format.
    ///
    /// # Errors
    /// A sentence for people, where they cannot be read.
    fn metrics(&self) -> Result<String, String>;

    /// Whether the loop turns; the text says why not.
    ///
    /// # Errors
    /// It does not.
    fn liveness(&self) -> Result<String, String>;

    /// Whether the first full apply is in the kernel.
    ///
    /// # Errors
    /// It is not.
    fn readiness(&self) -> Result<String, String>;
}

/// Starts to serve.
///
/// # Errors
/// The address is in use or not of this host.
pub async fn start(address: SocketAddr, site: Arc<dyn Site>) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let room = Arc::new(Semaphore::new(MAX_CLIENTS));
    tokio::spawn(async move {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let site = Arc::clone(&site);
                    tokio::spawn(async move {
                        // A client that goes away or is too slow is its own problem.
                        let _ = tokio::time::timeout(PATIENCE, serve(stream, &*site)).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the metrics server cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn serve(mut stream: TcpStream, site: &dyn Site) -> io::Result<()> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !ends(&head) && head.len() < MAX_HEAD {
        match stream.read(&mut chunk).await? {
            0 => break,
            n => head.extend_from_slice(&chunk[..n]),
        }
    }
    stream.write_all(&answer(&head, site)).await?;
    stream.shutdown().await
}

fn ends(head: &[u8]) -> bool {
    head.windows(4).any(|end| end == b"\r\n\r\n") || head.windows(2).any(|end| end == b"\n\n")
}

/// The whole answer to a request's head.
fn answer(head: &[u8], site: &dyn Site) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), true) = (method, target, version.is_some_and(|v| v.starts_with("HTTP/1."))) else {
        return response("400 Bad Request", "text/plain", "not an HTTP/1 request\n", true);
    };
    let body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return response("405 Method Not Allowed\r\nAllow: GET, HEAD", "text/plain", "only GET\n", true),
    };
    let plain = |result: Result<String, String>| match result {
        Ok(text) => response("200 OK", "text/plain; charset=utf-8", &(text + "\n"), body),
        Err(text) => response("503 Service Unavailable", "text/plain; charset=utf-8", &(text + "\n"), body),
    };
    match target.split('?').next().unwrap_or_default() {
        "/metrics" => match site.metrics() {
            Ok(text) => response("200 OK", "text/plain; version=0.0.4; charset=utf-8", &text, body),
            Err(text) => plain(Err(text)),
        },
        "/liveness" => plain(site.liveness()),
        "/readiness" => plain(site.readiness()),
        _ => response("404 Not Found", "text/plain", "there are /metrics, /liveness and /readiness\n", body),
    }
}

fn response(status: &str, kind: &str, text: &str, body: bool) -> Vec<u8> {
    let length = text.len();
    let text = if body { text } else { "" };
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Site for Fixed {
        fn metrics(&self) -> Result<String, String> {
            Ok("x 1\n".into())
        }

        fn liveness(&self) -> Result<String, String> {
            Ok("alive".into())
        }

        fn readiness(&self) -> Result<String, String> {
            Err("not yet".into())
        }
    }

    fn ask(head: &str) -> String {
        String::from_utf8(answer(head.as_bytes(), &Fixed)).expect("text")
    }

    #[test]
    fn requests_are_answered() {
        let metrics = ask("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n") && metrics.ends_with("\r\n\r\nx 1\n"), "{metrics}");
        assert!(ask("GET /liveness HTTP/1.0\r\n\r\n").contains(" 200 "));
        assert!(ask("GET /readiness HTTP/1.1\r\n\r\n").contains(" 503 "));
        assert!(ask("GET / HTTP/1.1\r\n\r\n").contains(" 404 "));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").contains(" 405 "));
        assert!(ask("\u{0}garbage").contains(" 400 "));
        assert!(ask("").contains(" 400 "));
        let head = ask("HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_request_in_pieces_is_put_together() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            serve(stream, &Fixed).await
        });
        let mut client = TcpStream::connect(address).await.expect("connect");
        for piece in ["GET /met", "rics HTTP/1.1\r\n", "\r\n"] {
            client.write_all(piece.as_bytes()).await.expect("write");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut text = String::new();
        client.read_to_string(&mut text).await.expect("read");
        assert!(text.ends_with("x 1\n"), "{text}");
        server.await.expect("joined").expect("served");
    }
}
