//! The benchmark's own programs in the kernel: generator, bare redirect, sink.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf,
    maps::{Array, PerCpuArray},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode,
        tc::TcAttach,
    },
};
use xtask::lab::{Namespace, Workload};

/// Ethernet and IP headers, which the paths under test change.
const HEADERS: usize = 54;

/// A loaded copy of the programs.
pub(crate) struct Kernel(Ebpf);

impl Kernel {
    pub(crate) fn load() -> anyhow::Result<Self> {
        Ok(Self(Ebpf::load(calico_ebpf_user::BENCH_OBJECT).context("cannot load the benchmark's programs")?))
    }

    /// Puts the sink in front of `interface` in `namespace`.
    pub(crate) fn sink(&mut self, namespace: &Namespace, interface: &str) -> anyhow::Result<()> {
        self.attach("bench_sink", namespace, interface)
    }

    /// Puts the bare redirect in front of `from`, to the namespace behind `to`.
    pub(crate) fn redirect(&mut self, host: &Namespace, from: &str, to: &str) -> anyhow::Result<()> {
        let target = ifindex(host, to)?;
        let mut map = Array::<_, u32>::try_from(self.0.map_mut("BENCH_TARGET").context("no BENCH_TARGET")?)?;
        map.set(0, &target, 0)?;
        self.attach("bench_redirect", host, from)
    }

    fn attach(&mut self, program: &str, namespace: &Namespace, interface: &str) -> anyhow::Result<()> {
        let ifindex = ifindex(namespace, interface)?;
        let program: &mut SchedClassifier = self.0.program_mut(program).context("no such program")?.try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        let order = LinkOrder::first();
        let attach = TcAttach::Tcx { attach_type: TcAttachType::Ingress, order };
        // The link lives as long as the loaded programs do.
        namespace.enter(|| program.attach(ifindex, attach))?.map(drop)?;
        Ok(())
    }

    /// Packets that reached the sinks of this copy.
    pub(crate) fn sunk(&self) -> anyhow::Result<u64> {
        let map = PerCpuArray::<_, u64>::try_from(self.0.map("BENCH_SUNK").context("no BENCH_SUNK")?)?;
        Ok(map.get(&0, 0)?.iter().sum())
    }

    /// Delivers what `uplink` receives for `workload` by XDP.
    pub(crate) fn deliver(
        &mut self,
        host: &Namespace,
        (uplink, mode): (&str, XdpMode),
        workload: &Workload,
    ) -> anyhow::Result<()> {
        let target = ifindex(host, &workload.interface)?;
        let to = mac(&workload.namespace, "eth0")?;
        let from = mac(host, &workload.interface)?;
        let mut value = [0; 16];
        for (place, byte) in value.iter_mut().zip(to.into_iter().chain(from).chain(workload.v4.octets())) {
            *place = byte;
        }
        let mut map = Array::<_, u32>::try_from(self.0.map_mut("BENCH_TARGET").context("no BENCH_TARGET")?)?;
        map.set(0, &target, 0)?;
        let mut map = Array::<_, [u8; 16]>::try_from(self.0.map_mut("BENCH_WORKLOAD").context("no BENCH_WORKLOAD")?)?;
        map.set(0, &value, 0)?;
        let uplink = ifindex(host, uplink)?;
        let program: &mut Xdp = self.0.program_mut("bench_deliver").context("no bench_deliver")?.try_into()?;
        program.load()?;
        host.enter(|| program.attach(uplink, mode))?.map(drop)?;
        Ok(())
    }

    /// Sends `frame` `count` times by `interface`; returns how long that took, with all that the other end does on this
    /// processor.
    pub(crate) fn send(
        &mut self,
        namespace: &Namespace,
        interface: &str,
        frame: &[u8],
        count: u32,
    ) -> anyhow::Result<Duration> {
        self.live("bench_send", namespace, interface, frame, count)
    }

    /// Sends `frame` `count` times as if received on `interface` of `host`; returns how long that took, sink included.
    pub(crate) fn generate(
        &mut self,
        host: &Namespace,
        interface: &str,
        frame: &[u8],
        count: u32,
    ) -> anyhow::Result<Duration> {
        self.live("bench_generate", host, interface, frame, count)
    }

    fn live(
        &mut self,
        program: &str,
        host: &Namespace,
        interface: &str,
        frame: &[u8],
        count: u32,
    ) -> anyhow::Result<Duration> {
        let ifindex = ifindex(host, interface)?;
        let headers: [u8; HEADERS] = frame.get(..HEADERS).context("short frame")?.try_into()?;
        let mut map =
            Array::<_, [u8; HEADERS]>::try_from(self.0.map_mut("BENCH_HEADERS").context("no BENCH_HEADERS")?)?;
        map.set(0, &headers, 0)?;
        let program: &mut Xdp = self.0.program_mut(program).context("no such program")?.try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let length = u32::try_from(frame.len())?;
        let context: Vec<u8> = [0, length, 0, ifindex, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        host.enter(|| {
            let options = TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                repeat: count,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::default()
            };
            let start = Instant::now();
            program.test_run(options)?;
            anyhow::Ok(start.elapsed())
        })?
    }

    /// Nanoseconds of an empty program in a test run.
    pub(crate) fn empty(&mut self, frame: &[u8], repeat: u32) -> anyhow::Result<Duration> {
        let program: &mut SchedClassifier = self.0.program_mut("bench_empty").context("no bench_empty")?.try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        let result = program.test_run(TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() })?;
        Ok(result.duration)
    }
}

/// Index of an interface.
pub(crate) fn ifindex(namespace: &Namespace, interface: &str) -> anyhow::Result<u32> {
    let text = namespace.ip(&format!("-o link show dev {interface}"))?;
    let (index, _) = text.split_once(':').with_context(|| format!("what is {text:?}?"))?;
    Ok(index.trim().parse()?)
}

/// MAC address of an interface.
pub(crate) fn mac(namespace: &Namespace, interface: &str) -> anyhow::Result<[u8; 6]> {
    let text = namespace.ip(&format!("-o link show dev {interface}"))?;
    let mac = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no MAC address")?;
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    ensure!(bytes.len() == 6, "what is {mac}?");
    Ok(std::array::from_fn(|i| bytes[i]))
}
