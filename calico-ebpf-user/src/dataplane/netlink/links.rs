//! Interfaces.

use std::{collections::HashMap, io};

use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
};

use super::Netlink;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// Zero where it has none.
    pub(crate) mac: [u8; 6],
    /// Administratively up.
    pub(crate) up: bool,
    /// Up, and so is the other end.
    pub(crate) carrier: bool,
    pub(crate) loopback: bool,
    /// Its packets have an Ethernet header.
    pub(crate) ethernet: bool,
    /// Part of a bridge, a bond or the like.
    pub(crate) has_master: bool,
    /// In a VRF: it is still an interface by itself.
    pub(crate) in_vrf: bool,
    /// A veth.
    pub(crate) veth: bool,
    /// A VLAN.
    pub(crate) vlan: bool,
    /// A bond.
    pub(crate) bond: bool,
    /// An intermediate functional block: no route leads there, but what comes in elsewhere.
    pub(crate) ifb: bool,
    /// Where the other end, or what it lies on, is in another network namespace: this namespace's id for that one.
    pub(crate) peer_netns: Option<i32>,
    /// Index of the other end, or of what it lies on, in its namespace.
    pub(crate) peer_index: Option<u32>,
}

impl Netlink {
    /// All interfaces.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(&request)?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(parse_link(link)),
                _ => None,
            })
            .collect())
    }

    /// Whether an interface is (still) there.
    pub(crate) fn exists(&mut self, index: u32) -> bool {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let answer = self.request(&RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST);
        !answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
    }

    /// The MAC address of an interface in another network namespace that has an id here.
    pub(crate) fn foreign_mac(&mut self, netns: i32, index: u32) -> io::Result<Option<[u8; 6]>> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfNetnsId(netns));
        let answers = self.request(&RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)?;
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(parse_link(link).mac),
            _ => None,
        }))
    }

    /// Ids of the XDP programs on an interface, whoever they are.
    pub(crate) fn xdp_programs(&mut self, index: u32) -> io::Result<Vec<u32>> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let answers = self.request(&RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)?;
        let mut ids = Vec::new();
        for answer in &answers {
            let RouteNetlinkMessage::NewLink(link) = answer else { continue };
            for attribute in &link.attributes {
                let LinkAttribute::Xdp(xdp) = attribute else { continue };
                ids.extend(xdp.iter().filter_map(|one| match one {
                    LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
                        Some(*id)
                    }
                    _ => None,
                }));
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| *id != 0);
        Ok(ids)
    }
}

fn parse_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: [0; 6],
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        has_master: false,
        in_vrf: false,
        veth: false,
        vlan: false,
        bond: false,
        ifb: false,
        peer_netns: None,
        peer_index: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address) => link.mac = address.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Link(index) => link.peer_index = Some(*index),
            LinkAttribute::Controller(index) => link.has_master = *index != 0,
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                let is = |kind| infos.contains(&LinkInfo::Kind(kind));
                (link.veth, link.vlan, link.bond) = (is(InfoKind::Veth), is(InfoKind::Vlan), is(InfoKind::Bond));
                link.ifb = is(InfoKind::Ifb);
                link.in_vrf = infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
            }
            _ => {}
        }
    }
    link.has_master &= !link.in_vrf;
    link
}

/// Interfaces by name and by index.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkTable {
    by_index: HashMap<u32, Link>,
    by_name: HashMap<String, u32>,
}

impl LinkTable {
    pub(crate) fn new(links: Vec<Link>) -> Self {
        let by_name = links.iter().map(|link| (link.name.clone(), link.index)).collect();
        Self { by_index: links.into_iter().map(|link| (link.index, link)).collect(), by_name }
    }

    pub(crate) fn by_index(&self, index: u32) -> Option<&Link> {
        self.by_index.get(&index)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Link> {
        self.by_name.get(name).and_then(|index| self.by_index.get(index))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.by_index.values()
    }
}
