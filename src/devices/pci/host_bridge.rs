//! The host bridge at 00:00.0: nothing but an identity.

use std::sync::Mutex;

use super::config::{ConfigSpace, Identity};
use super::root::PciFunction;
use crate::devices::registers::RegisterPages;
use crate::status::model::DeviceFacts;

/// A bridge from the CPU to bus 0. Guests look for one; it has no registers of its own.
#[derive(Debug)]
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// Lays out the bridge on its configuration page.
    #[must_use]
    pub fn new(page: RegisterPages) -> Self {
        // The generic PCI Express host bridge, an id no guest has quirks for.
        let identity =
            Identity { vendor: 0x1b36, device: 0x0008, revision: 0, class: [0x06, 0, 0], subsystem: 0x1100 };
        Self { config: Mutex::new(ConfigSpace::new(page, identity)) }
    }
}

impl PciFunction for HostBridge {
    fn config_write(&self, offset: usize, data: &[u8]) {
        let mut config = self.config.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        config.write(offset, data);
    }

    fn bar(&self) -> Option<(u64, u64)> {
        None
    }

    fn bar_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _offset: u64, _data: &[u8]) {}

    fn facts(&self) -> DeviceFacts {
        DeviceFacts { kind: "pci-host-bridge".into(), state: "active".into(), ..DeviceFacts::default() }
    }
}
