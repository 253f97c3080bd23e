//! The real program, real packets: as root, with `calico-ebpf` built.

mod agent;
mod bird;
mod churn;
mod closed;
mod commands;
mod conformance;
mod demo;
mod flood;
mod flows;
mod instances;
mod kernel;
mod lab;
mod look;
mod mtu;
mod nat_outgoing;
mod neighbours;
mod order;
mod purge;
mod reach;
mod refusal;
mod reload;
mod restart;
mod routes;
mod shapes;
mod spoofing;
mod uplink;
