//! From YAML text to validated resources. No I/O but reading the files; no `unsafe`.

pub mod model;
pub mod selector;
