//! What untracked policy says of single packets, as the XDP program judges them.

use std::net::IpAddr;

use calico_ebpf_common::{judge, packet::nd::NEIGHBOUR_DISCOVERY};

use super::{ECHO, End, Flow, HostInterface, ICMP, ICMPV6, Judge, Outcome, Party, Question};
use crate::policy::{
    compiled::Direction,
    flow::{EndVerdict, Verdict, word},
    maps::Maps,
};

/// An interface that a packet passes, and which way.
struct Passage {
    host_endpoint: String,
    interface: String,
    direction: Direction,
}

impl<'a> Judge<'a> {
    /// What untracked policy makes of the first packet, and of the first one that comes back; `None` where it is not asked.
    pub(super) fn untracked(
        &mut self,
        question: &Question,
        from: &Party<'a>,
        to: &Party<'a>,
        flow: &Flow,
    ) -> anyhow::Result<[Option<End>; 2]> {
        if !self.maps_of(self.node)?.is_some_and(Maps::has_untracked) {
            return Ok([None, None]);
        }
        let (from_outside, to_outside) = (self.is_outside(from), self.is_outside(to));
        // Where the interface is told, the packet passes this host.
        let passes_by = from_outside && to_outside && question.interface.is_some();
        let forth = if from_outside && !to_outside || passes_by {
            self.passage(question, flow.destination, Direction::Ingress)?
        } else if from.host && to_outside {
            self.passage(question, flow.source, Direction::Egress)?
        } else {
            None
        };
        let back = if from_outside && to.host {
            self.passage(question, flow.destination, Direction::Egress)?
        } else if !from_outside && to_outside {
            self.passage(question, flow.source, Direction::Ingress)?
        } else {
            None
        };
        let Some(maps) = self.maps_of(self.node)? else { return Ok([None, None]) };
        let judge = |passage: Option<Passage>, flow: Flow| passage.and_then(|passage| judged(maps, &passage, &flow));
        Ok([judge(forth, *flow), answer(flow).and_then(|answer| judge(back, answer))])
    }

    /// What becomes of the answer to what untracked policy allows, where it leaves that: nothing knows it for one.
    pub(super) fn judge_answer(
        &mut self,
        question: &Question,
        from: &Party<'a>,
        to: &Party<'a>,
        flow: &Flow,
        untracked: &mut Option<End>,
    ) -> anyhow::Result<()> {
        let is_left = untracked.as_ref().is_none_or(|end| end.verdict == "leave");
        let Some(answer) = answer(flow).filter(|_| is_left) else { return Ok(()) };
        let mut verdict = Verdict::default();
        self.judge_host(question, to, from, &answer, &mut verdict)?;
        let ends = [(verdict.source, Direction::Egress), (verdict.destination, Direction::Ingress)];
        let denied = ends.into_iter().find_map(|(end, side)| Some((end.filter(|end| !end.allow)?, side)));
        if let Some((end, side)) = denied {
            *untracked = Some(End::new(end, side));
        }
        Ok(())
    }

    /// The interface that has untracked policy, of the host endpoint that a packet passes; `inside` is the address of its end
    /// that is not outside.
    fn passage(&self, question: &Question, inside: IpAddr, direction: Direction) -> anyhow::Result<Option<Passage>> {
        let host_endpoint = self.host_endpoint(question, inside)?;
        let of = self.set.host_endpoints_of(self.node).find(|host| host.name == host_endpoint);
        Ok(of.and_then(|host| match &host.interface {
            HostInterface::Named(interface) => Some(Passage { host_endpoint, interface: interface.clone(), direction }),
            _ => None,
        }))
    }
}

impl Outcome {
    /// Adds what untracked policy says of the first packet, and of the one that comes back: without answers there is no flow.
    pub(super) fn with_untracked(mut self, [forth, back]: [Option<End>; 2]) -> Self {
        if [&forth, &back].into_iter().flatten().any(|end| end.verdict == word(false)) {
            self.verdict = word(false);
        }
        (self.untracked, self.untracked_answer) = (forth, back);
        self
    }
}

/// What the interface's table says; `None` where there is none, or nobody judges.
fn judged(maps: &Maps, passage: &Passage, flow: &Flow) -> Option<End> {
    let [kind, _] = flow.destination_port.to_be_bytes();
    if flow.protocol == ICMPV6 && NEIGHBOUR_DISCOVERY.contains(&kind) {
        return None;
    }
    let Passage { host_endpoint, interface, direction } = passage;
    let (verdict, rule) = maps.judge_untracked(interface, *direction, flow)?;
    let (allow, reject) = (verdict == judge::Verdict::Allow, verdict == judge::Verdict::Reject);
    let end = End::new(EndVerdict { endpoint: host_endpoint.clone(), allow, reject, rule }, *direction);
    Some(if verdict == judge::Verdict::Leave { End { verdict: "leave", ..end } } else { end })
}

/// The first packet that comes back; `None` where none does.
fn answer(flow: &Flow) -> Option<Flow> {
    let mut answer = Flow { source: flow.destination, destination: flow.source, ..*flow };
    if flow.protocol == ICMP || flow.protocol == ICMPV6 {
        let [kind, code] = flow.destination_port.to_be_bytes();
        let (.., reply) = ECHO.into_iter().find(|&(protocol, ask, _)| (protocol, ask) == (flow.protocol, kind))?;
        answer.destination_port = u16::from_be_bytes([reply, code]);
    } else {
        (answer.source_port, answer.destination_port) = (flow.destination_port, flow.source_port);
    }
    Some(answer)
}
