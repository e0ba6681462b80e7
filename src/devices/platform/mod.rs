//! The few devices that are not on PCI.

pub mod power;
pub mod serial;
