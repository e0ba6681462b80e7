//! PCI Express: configuration space, MSI-X, and the root bus the functions sit on.

// A guest chooses the numbers here: what it cannot reach says so.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod config;
pub mod host_bridge;
pub mod msix;
pub mod root;
