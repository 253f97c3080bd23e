//! The clsact qdisc and its filters.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::Netlink;

/// A `cls_bpf` filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) priority: u16,
    pub(crate) handle: u32,
    pub(crate) program: Option<u32>,
    pub(crate) name: String,
}

/// A hook of the clsact qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Hook {
    Ingress,
    Egress,
}

/// `ETH_P_ALL` in network order, as `tcm_info` wants it.
const ETH_P_ALL: u32 = (0x0003_u16).to_be() as u32;

impl Netlink {
    /// Adds a clsact qdisc; false if the interface has one.
    pub(crate) fn add_clsact(&mut self, ifindex: u32) -> io::Result<bool> {
        let message = RouteNetlinkMessage::NewQueueDiscipline(clsact_message(ifindex));
        match self.request(&message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes the clsact qdisc with all its filters.
    pub(crate) fn delete_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelQueueDiscipline(clsact_message(ifindex));
        absent_is_fine(self.request(&message, NLM_F_REQUEST | NLM_F_ACK))
    }

    /// The `cls_bpf` filters of a hook; none where there is no clsact qdisc.
    pub(crate) fn filters(&mut self, ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        message.header.parent = parent(hook);
        let answers = match self.dump(&RouteNetlinkMessage::GetTrafficFilter(message)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => {
                return Ok(Vec::new());
            }
            answers => answers?,
        };
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(message) => parse_filter(message),
                _ => None,
            })
            .collect())
    }

    /// Adds a direct-action filter, or replaces the one with this priority and handle: then no packet is missed.
    pub(crate) fn set_filter(
        &mut self,
        ifindex: u32,
        hook: Hook,
        priority: u16,
        handle: u32,
        program: (i32, &str),
    ) -> io::Result<()> {
        let mut message = filter_message(ifindex, hook, priority, handle);
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.0.cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(program.1.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        self.request(&message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE).map(drop)
    }

    /// Deletes a filter; that it is gone already is no error.
    pub(crate) fn delete_filter(&mut self, ifindex: u32, hook: Hook, priority: u16, handle: u32) -> io::Result<()> {
        let mut message = filter_message(ifindex, hook, priority, handle);
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        let message = RouteNetlinkMessage::DelTrafficFilter(message);
        absent_is_fine(self.request(&message, NLM_F_REQUEST | NLM_F_ACK))
    }
}

fn absent_is_fine(result: io::Result<Vec<RouteNetlinkMessage>>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        done => done.map(drop),
    }
}

fn clsact_message(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message
}

fn filter_message(ifindex: u32, hook: Hook, priority: u16, handle: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = parent(hook);
    message.header.handle = TcHandle::from(handle);
    message.header.info = u32::from(priority) << 16 | ETH_P_ALL;
    message
}

fn parent(hook: Hook) -> TcHandle {
    let minor = match hook {
        Hook::Ingress => TcHandle::MIN_INGRESS,
        Hook::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: TcHandle::CLSACT.major, minor }
}

fn parse_filter(message: &TcMessage) -> Option<Filter> {
    let handle = u32::from(message.header.handle);
    if handle == 0 {
        // The chain's head, which the kernel lists too.
        return None;
    }
    let priority = (message.header.info >> 16) as u16;
    let mut filter = Filter { priority, handle, program: None, name: String::new() };
    let mut bpf = false;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => bpf = kind == TcFilterBpf::KIND,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    bpf.then_some(filter)
}
