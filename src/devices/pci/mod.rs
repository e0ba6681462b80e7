//! PCI Express: configuration space, MSI-X, and the root bus the functions sit on.

pub mod config;
pub mod host_bridge;
pub mod msix;
pub mod root;
