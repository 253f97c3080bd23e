//! Empty: the programs are the binary. This target lets the loader depend on the package, so that cargo sees its changes.
#![no_std]
