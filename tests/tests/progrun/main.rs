//! The programs one packet at a time, by `BPF_PROG_TEST_RUN`: what they do with it, and what they leave in the maps.

mod budget;
mod connections;
mod differential;
mod forwarding;
mod frames;
mod generate;
mod harness;
mod host;
mod host_endpoints;
mod link;
mod model;
mod parse;
mod policy;
mod refusal;
mod room;
mod services;
mod shapes;
mod spoofing;
mod uplink;
