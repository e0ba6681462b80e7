//! pvpanic: one byte-wide port through which a guest's kernel says that it panics (QEMU, docs/specs/pvpanic.rst).
//!
//! As an ACPI device with a port and not as a PCI function: it takes no slot, every Linux since 3.10 knows it so, and a
//! guest without the driver never touches it.

use crate::devices::bus::BusDevice;

/// Ports in the block.
pub const PORTS: u64 = 1;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;
/// What the guest may say. Not among it: "shutdown" (bit 2), because a guest switches itself off through ACPI.
const EVENTS: u8 = PANICKED | CRASH_LOADED;

/// What the guest's kernel said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicEvent {
    /// It panicked, and that is the end of it.
    Panicked,
    /// It panicked, and now its crash kernel (kdump) runs: the VM goes on until that one ends.
    CrashLoaded,
}

/// The port. It tells its owner and remembers nothing.
pub struct PvPanic {
    on_event: Box<dyn Fn(PanicEvent) + Send + Sync>,
}

impl PvPanic {
    /// Calls `on_event` on the vCPU thread that wrote the port.
    #[must_use]
    pub fn new(on_event: impl Fn(PanicEvent) + Send + Sync + 'static) -> Self {
        Self { on_event: Box::new(on_event) }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(EVENTS);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let &[event] = data else { return };
        if event & PANICKED != 0 {
            (self.on_event)(PanicEvent::Panicked);
        } else if event & CRASH_LOADED != 0 {
            (self.on_event)(PanicEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    fn port() -> (PvPanic, Arc<Mutex<Vec<PanicEvent>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        (PvPanic::new(move |event| log.lock().unwrap().push(event)), seen)
    }

    #[test]
    fn the_port_says_what_it_takes_and_tells_what_it_took() {
        let (port, seen) = port();
        let mut offered = [0];
        port.read(0, &mut offered);
        assert_eq!(offered, [3]);
        for event in [0, 4, 0xf8, 2, 1, 3] {
            port.write(0, &[event]);
        }
        use PanicEvent::{CrashLoaded, Panicked};
        assert_eq!(*seen.lock().unwrap(), [CrashLoaded, Panicked, Panicked]);
    }

    proptest! {
        #[test]
        fn any_write_is_one_event_or_none(writes in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)), 0..50)) {
            let (port, seen) = port();
            for (offset, data) in &writes {
                port.write(*offset, data);
                port.read(*offset, &mut data.clone());
            }
            let events = writes.iter().filter(|(_, data)| data.len() == 1 && data[0] & 3 != 0);
            prop_assert_eq!(seen.lock().unwrap().len(), events.count());
        }
    }
}
