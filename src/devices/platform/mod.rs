//! The few devices that are not on PCI.

pub mod generation;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod watchdog;
