//! From YAML text to validated resources. No I/O but reading the files; no `unsafe`.
//!
//! [`load`] (or [`Reader::load`], again and again) reads paths, and gives the [`model::ResourceSet`] with all findings.
//! The way there: `files` reads bytes; `yaml` makes trees that know their places; `kinds` finds the reader of a resource;
//! `metadata`, `policy`, `rules`, `profile`, `workload`, `host_endpoint` and `felix` read fields through `decode` and turn texts into values
//! with `values`; `relations` checks what concerns several resources.

mod annotations;
mod bgp;
mod decode;
mod diagnostic;
mod felix;
mod files;
mod host_endpoint;
mod host_interfaces;
mod kinds;
mod kubernetes;
mod metadata;
pub mod model;
mod network_set;
mod node;
mod parsed;
mod policy;
mod pool;
mod profile;
mod reader;
mod relations;
mod remark;
mod report;
mod rules;
pub mod selector;
mod shared;
mod source;
mod tier;
mod values;
mod workload;
mod yaml;

pub use diagnostic::{Diagnostic, Severity, SourceLine};
pub use host_interfaces::host_endpoint_of;
pub use reader::{FileStamp, Loaded, Reader, load, load_content};
pub use remark::Remark;
pub use report::Report;
pub use shared::{Shared, changed_part};
pub use values::protocol as protocol_number;
