//! Calico`s own table of cases.
