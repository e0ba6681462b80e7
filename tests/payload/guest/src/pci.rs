//! PCI
