//! Address → device. Built once, then read without a lock by every vCPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device that answers reads and writes at offsets from wherever it was placed. It never knows its address.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes) with the registers at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` (1 to 8 bytes) written at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices would answer at the same address.
#[derive(Debug, thiserror::Error)]
#[error("the {name} range {base:#x}+{len:#x} overlaps another device's")]
pub struct OverlapError {
    name: &'static str,
    base: u64,
    len: u64,
}

struct Range {
    name: &'static str,
    base: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// How often a range trapped, for the status.
#[derive(Debug, Clone, Copy)]
pub struct TrapCount {
    /// The name the range was added under.
    pub name: &'static str,
    /// First address.
    pub base: u64,
    /// Reads that exited to user space.
    pub reads: u64,
    /// Writes that exited to user space.
    pub writes: u64,
}

/// One address space: port I/O or memory-mapped I/O.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
    unclaimed_reads: AtomicU64,
    unclaimed_writes: AtomicU64,
}

impl Bus {
    /// Places `device` at `base..base + len`.
    ///
    /// # Errors
    /// When the range overlaps one already placed.
    pub fn add(
        &mut self,
        name: &'static str,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), OverlapError> {
        let at = self.ranges.partition_point(|range| range.base < base);
        let clear_below = at
            .checked_sub(1)
            .and_then(|below| self.ranges.get(below))
            .is_none_or(|below| below.base + below.len <= base);
        let clear_above = self.ranges.get(at).is_none_or(|next| base + len <= next.base);
        if !(clear_below && clear_above) {
            return Err(OverlapError { name, base, len });
        }
        let range = Range { name, base, len, device, reads: AtomicU64::new(0), writes: AtomicU64::new(0) };
        self.ranges.insert(at, range);
        Ok(())
    }

    /// A trapped read. Nobody there reads as all ones, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some(range) => {
                range.reads.fetch_add(1, Ordering::Relaxed);
                range.device.read(address - range.base, data);
            }
            None => {
                self.unclaimed_reads.fetch_add(1, Ordering::Relaxed);
                data.fill(0xff);
            }
        }
    }

    /// A trapped write. Nobody there swallows it.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Some(range) => {
                range.writes.fetch_add(1, Ordering::Relaxed);
                range.device.write(address - range.base, data);
            }
            None => {
                self.unclaimed_writes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Trap counts per range, in address order; the accesses nobody claimed come last.
    pub fn trap_counts(&self) -> Vec<TrapCount> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let claimed = self.ranges.iter().map(|range| TrapCount {
            name: range.name,
            base: range.base,
            reads: load(&range.reads),
            writes: load(&range.writes),
        });
        let unclaimed = TrapCount {
            name: "unclaimed",
            base: 0,
            reads: load(&self.unclaimed_reads),
            writes: load(&self.unclaimed_writes),
        };
        claimed.chain(std::iter::once(unclaimed)).collect()
    }

    fn find(&self, address: u64, len: usize) -> Option<&Range> {
        let at = self.ranges.partition_point(|range| range.base <= address).checked_sub(1)?;
        let range = self.ranges.get(at)?;
        let end = (address - range.base).checked_add(len as u64)?;
        (end <= range.len).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn a_device_sees_offsets_and_nobody_reads_as_ones() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.add("test", 0x100, 0x10, device.clone()).unwrap();
        let mut data = [0; 2];
        bus.read(0x104, &mut data);
        assert_eq!(data, [4, 4]);
        bus.write(0x10f, &[7]);
        assert_eq!(*device.0.lock().unwrap(), [(0xf, vec![7])]);
        for beyond in [0xff, 0x10f, 0x110, u64::MAX] {
            bus.read(beyond, &mut data);
            assert_eq!(data, [0xff, 0xff], "at {beyond:#x}");
        }
        assert_eq!(bus.trap_counts()[0].reads, 1);
        assert_eq!(bus.trap_counts()[1].reads, 4);
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let mut bus = Bus::default();
        let device = Arc::new(Recorder::default());
        bus.add("a", 0x100, 0x10, device.clone()).unwrap();
        bus.add("b", 0x120, 0x10, device.clone()).unwrap();
        bus.add("between", 0x110, 0x10, device.clone()).unwrap();
        for (base, len) in [(0x100, 1), (0x10f, 1), (0xf0, 0x11), (0x12f, 4), (0x90, 0x1000)] {
            assert!(bus.add("c", base, len, device.clone()).is_err(), "{base:#x}+{len:#x}");
        }
    }
}
