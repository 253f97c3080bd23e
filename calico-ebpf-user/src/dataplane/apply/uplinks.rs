//! Uplinks: which there are, their XDP programs, and answering for workloads there.

use std::collections::BTreeSet;

use calico_ebpf_common::abi::uplink_flags;

use super::Dataplane;
use crate::dataplane::{
    desired::{Applied, Desired, Uplinks},
    error::{DataplaneError, Result},
    links::Found,
    neighbours::{self, Answerer},
    netlink::LinkTable,
    sys,
    xdp::{self, UplinkXdp, XdpMode},
};

impl Dataplane {
    /// Indices of the uplinks that exist.
    pub(super) fn uplinks(&mut self, desired: &Desired, links: &LinkTable, applied: &mut Applied) -> Result<Vec<u32>> {
        let mut uplinks: Vec<u32> = match &desired.uplinks {
            Uplinks::Named(interfaces) => {
                interfaces.iter().filter_map(|name| links.by_name(name)).map(|link| link.index).collect()
            }
            Uplinks::DefaultRoutes => {
                let devices = self.netlink.default_route_devices().map_err(DataplaneError::io("list the routes"))?;
                let workload = |index: &u32| {
                    let name = links.by_index(*index).map(|link| link.name.as_str());
                    desired.workloads.iter().any(|workload| Some(workload.interface.as_str()) == name)
                };
                devices.into_iter().filter(|index| !workload(index)).collect()
            }
        };
        for link in desired.untracked.keys().filter_map(|name| links.by_name(name)) {
            if !uplinks.contains(&link.index) {
                uplinks.push(link.index);
            }
        }
        let most = calico_ebpf_common::abi::MAX_UPLINKS;
        if uplinks.len() > most {
            applied.faults.push(format!("{} uplinks, but only the first {most} are used", uplinks.len()));
            uplinks.truncate(most);
        }
        Ok(uplinks)
    }

    /// Hangs the XDP program where there is something for it to do, and takes it from elsewhere. Behind the interfaces and
    /// their other programs: it tells those behind it that it has judged, and has to know by what.
    pub(super) fn xdp(
        &mut self,
        desired: &Desired,
        uplinks: &[u32],
        found: &Found,
        failed: &BTreeSet<u32>,
        applied: &mut Applied,
    ) -> Result<()> {
        self.expected_xdp.clear();
        let mut kept = BTreeSet::new();
        for link in uplinks.iter().filter_map(|index| found.links.by_index(*index)) {
            let Some(ingress) = desired.untracked.get(&link.name) else { continue };
            let off = |reason: &str| UplinkXdp {
                interface: link.name.clone(),
                mode: None,
                reason: reason.to_owned(),
                hindered: false,
            };
            if failed.contains(&link.index) || !*ingress || !desired.xdp.enabled {
                applied.xdp.push(off(if !*ingress {
                    "the untracked policy is about what the host sends only"
                } else if desired.xdp.enabled {
                    "the TC programs could not be attached"
                } else {
                    "xdpEnabled is false: the TC program judges alone"
                }));
                continue;
            }
            if let Some(obstacle) = xdp::obstacle(link, &found.links) {
                applied.xdp.push(off(&obstacle));
                continue;
            }
            let Self { xdp, netlink, programs, .. } = self;
            match xdp.keep(netlink, programs, (link.index, &link.name), desired.xdp) {
                Ok((state, changed)) => {
                    applied.changes += usize::from(changed);
                    if state.mode.is_some() {
                        kept.insert(link.index);
                    }
                    applied.xdp.push(state);
                }
                Err(error) => {
                    applied.xdp.push(off(&format!("{error}: the TC program judges alone")));
                    applied.faults.push(error.to_string());
                }
            }
            if let Some((_, program)) = self.xdp.hanging(link.index) {
                self.expected_xdp.insert(link.index, program);
            }
        }
        let gone: BTreeSet<u32> = self.xdp.pins()?.into_iter().map(|(index, _)| index).collect();
        for ifindex in gone.difference(&kept) {
            applied.changes += usize::from(self.xdp.detach(*ifindex)?);
        }
        if self.info.xdp != applied.xdp {
            self.info.xdp.clone_from(&applied.xdp);
            self.info.write(&self.hooks.directory)?;
        }
        Ok(())
    }

    /// Has uplinks answer for local workloads inside of their own networks, where that is asked for. Behind everything that a
    /// packet needs which comes because of such an answer.
    pub(super) fn answer(&mut self, desired: &Desired, uplinks: &[u32], found: &Found, applied: &mut Applied) {
        if let Err(error) = self.try_answer(desired, uplinks, found, applied) {
            applied.faults.push(error.to_string());
        }
    }

    pub(super) fn try_answer(
        &mut self,
        desired: &Desired,
        uplinks: &[u32],
        found: &Found,
        applied: &mut Applied,
    ) -> Result<()> {
        let there = self.tables.neighbours()?;
        if desired.answered.is_empty() && there.is_empty() {
            return self.tables.set_uplink_flag(uplink_flags::ANSWERS, false);
        }
        let networks = self.netlink.networks().map_err(DataplaneError::io("list the addresses of this host"))?;
        let links = uplinks.iter().filter_map(|index| found.links.by_index(*index));
        let answerers: Vec<Answerer> = links
            .map(|link| Answerer {
                ifindex: link.index,
                mac: link.mac,
                // What a driver sends back reaches the other end of a veth only if that end is ready for it.
                by_xdp: match self.xdp.hanging(link.index) {
                    Some((XdpMode::Native, _)) => !link.veth,
                    Some((XdpMode::Generic, _)) => true,
                    None => false,
                },
            })
            .collect();
        let wanted = neighbours::wanted(&desired.answered, &answerers, &networks);
        let name = |ifindex: u32| found.links.by_index(ifindex).map(|link| link.name.as_str());
        let (mut received, mut no_longer) = (BTreeSet::new(), BTreeSet::new());
        for (key, neighbour) in &wanted {
            if there.get(key) != Some(neighbour) {
                self.tables.set_neighbour(key, Some(neighbour))?;
                applied.changes += 1;
            }
            received.extend(neighbours::solicited_mac(key).map(|mac| (key.ifindex, mac)));
        }
        for key in there.keys().filter(|key| !wanted.contains_key(key)) {
            self.tables.set_neighbour(key, None)?;
            applied.changes += 1;
            no_longer.extend(neighbours::solicited_mac(key).map(|mac| (key.ifindex, mac)));
        }
        self.tables.set_uplink_flag(uplink_flags::ANSWERS, !wanted.is_empty())?;
        let all = received.iter().map(|of| (of, true)).chain(no_longer.difference(&received).map(|of| (of, false)));
        for ((ifindex, mac), receive) in all {
            let Some(name) = name(*ifindex) else { continue };
            let what = || format!("interface {name}: the multicast address that neighbours ask by");
            sys::receive_multicast(name, *mac, receive).map_err(DataplaneError::io(what()))?;
        }
        Ok(())
    }

    /// The uplinks among these that exist, with their MAC addresses.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn with_macs(&mut self, uplinks: &[u32]) -> Result<Vec<(u32, [u8; 6])>> {
        let links = self.netlink.links().map_err(DataplaneError::io("list the interfaces"))?;
        Ok(links.iter().filter(|link| uplinks.contains(&link.index)).map(|link| (link.index, link.mac)).collect())
    }
}
