//! TCP request and response, and bulk, against a direct veth pair.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use xtask::lab::{Lab, Namespace};

use crate::{
    cpu,
    report::{Report, interleave},
    variant::{Kind, Variant},
};

const PORT: u16 = 9_001;
const ROUNDS: usize = 9;
const SPAN: Duration = Duration::from_millis(700);

/// Namespaces of client and server, and the server's address.
pub(crate) type Ends<'a> = (&'a Namespace, &'a Namespace, Ipv4Addr);

/// A client's and a server's namespace with something between them.
struct Path {
    name: &'static str,
    variant: Option<Variant>,
    direct: Option<Lab>,
}

impl Path {
    fn ends(&self) -> Ends<'_> {
        match (&self.variant, &self.direct) {
            (Some(variant), _) => {
                let (a, b) = (variant.lab.workload("a"), variant.lab.workload("b"));
                (&a.namespace, &b.namespace, b.v4)
            }
            (None, Some(lab)) => (&lab.host, &lab.outside, xtask::lab::OUTSIDE4),
            (None, None) => unreachable!("a path has one of them"),
        }
    }
}

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    // The uplink of a laboratory without workloads is a direct pair.
    let mut paths = vec![Path { name: "direct veth pair (D)", variant: None, direct: Some(Lab::new(&[])?) }];
    for kind in [Kind::Routing, Kind::Felix, Kind::Ours] {
        paths.push(Path { name: kind.name(), variant: Some(Variant::new(kind)?), direct: None });
    }
    let name = |path: &Path| path.name.to_owned();

    let rows = interleave(ROUNDS, &mut paths, name, |path| request_response(path.ends()))?;
    report.section("TCP request/response, 1 byte, both ends on one CPU", "thousand/s", rows);
    let rows = interleave(ROUNDS, &mut paths, name, |path| bulk(path.ends()))?;
    report.section("TCP bulk, one stream, client and server on a CPU each", "Gbit/s", rows);
    Ok(())
}

fn request_response(ends: Ends<'_>) -> anyhow::Result<f64> {
    with_server(
        ends,
        1,
        1,
        |mut stream| {
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        },
        |address| {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let (mut count, mut byte, start) = (0_u32, [0], Instant::now());
            while start.elapsed() < SPAN {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                count += 1;
            }
            Ok(f64::from(count) / start.elapsed().as_secs_f64() / 1e3)
        },
    )
}

/// Gbit/s of one stream, client and server on a processor each.
pub(crate) fn bulk(ends: Ends<'_>) -> anyhow::Result<f64> {
    with_server(
        ends,
        0,
        1,
        |mut stream| {
            let mut buffer = vec![0; 1 << 20];
            let mut total = 0_u64;
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                total += length as u64;
            }
            let _ = stream.write_all(&total.to_be_bytes());
        },
        |address| {
            let mut stream = TcpStream::connect(address)?;
            let (buffer, start) = (vec![0; 1 << 18], Instant::now());
            while start.elapsed() < SPAN {
                stream.write_all(&buffer)?;
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut total = [0; 8];
            stream.read_exact(&mut total)?;
            Ok(u64::from_be_bytes(total) as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
        },
    )
}

/// Runs `client` in the one end while `serve` gets each connection at the other.
fn with_server(
    (from, to, address): Ends<'_>,
    client_cpu: usize,
    server_cpu: usize,
    serve: impl Fn(TcpStream) + Send + Sync,
    client: impl Fn(SocketAddr) -> anyhow::Result<f64> + Send + Sync,
) -> anyhow::Result<f64> {
    let listener = to.enter(|| TcpListener::bind((address, PORT)))??;
    let address = SocketAddr::from((address, PORT));
    thread::scope(|scope| {
        let server = scope.spawn(|| -> anyhow::Result<()> {
            cpu::pin(server_cpu)?;
            for stream in listener.incoming() {
                let stream = stream?;
                // The last connection says nothing and ends the server.
                let mut first = [0];
                if stream.peek(&mut first)? == 0 {
                    return Ok(());
                }
                stream.set_nodelay(true)?;
                serve(stream);
            }
            Ok(())
        });
        let result = from.enter(|| {
            cpu::pin(client_cpu)?;
            let result = client(address);
            drop(TcpStream::connect(address)?);
            result
        })?;
        server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        result
    })
}
