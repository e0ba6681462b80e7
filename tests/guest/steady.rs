//! What happened between two looks at the status: exits to user space, and each device's counters.

use std::collections::BTreeMap;

use serde_json::Value;

use super::vm::Vm;

/// The first look.
#[derive(Debug)]
pub(crate) struct Steady(Value);

/// The difference.
#[derive(Debug)]
pub(crate) struct Delta {
    /// Exits to user space, of all vCPUs and for all reasons.
    pub(crate) exits: u64,
    /// The same by reason; those that did not happen are left out.
    pub(crate) reasons: BTreeMap<String, u64>,
    pub(crate) devices: Vec<DeviceDelta>,
}

/// One device's part.
#[derive(Debug)]
pub(crate) struct DeviceDelta {
    pub(crate) kind: String,
    pub(crate) address: String,
    /// Register accesses that left the guest.
    pub(crate) trapped_reads: u64,
    pub(crate) trapped_writes: u64,
    /// What its counters gained: `reads`, `interrupts`, `notifications`, …
    pub(crate) counters: BTreeMap<String, u64>,
}

impl Steady {
    pub(crate) fn begin(vm: &Vm) -> Self {
        Self(vm.status())
    }

    /// Looks again, and prints what changed under the heading `what`.
    pub(crate) fn end(self, vm: &Vm, what: &str) -> Delta {
        let delta = Delta::between(&self.0, &vm.status());
        println!("{what}: {} exits to user space {:?}", delta.exits, delta.reasons);
        for device in &delta.devices {
            println!(
                "  {} {}: trapped reads {} writes {}; {:?}",
                device.kind, device.address, device.trapped_reads, device.trapped_writes, device.counters
            );
        }
        delta
    }
}

impl Delta {
    fn between(before: &Value, after: &Value) -> Self {
        let exits = |status: &Value| status["exits_total"].as_u64().unwrap();
        let (old, new) = (numbers(&before["exits"]), numbers(&after["exits"]));
        let mut reasons = gains(&old, &new);
        reasons.retain(|_, gain| *gain > 0);
        let old: Vec<&Value> = before["devices"].as_array().unwrap().iter().collect();
        let device = |now: &Value| {
            let was = old.iter().find(|was| was["address"] == now["address"] && was["kind"] == now["kind"]);
            let was = was.unwrap_or_else(|| panic!("a device that was not there before: {now:#}"));
            let gain = |key: &str| now[key].as_u64().unwrap() - was[key].as_u64().unwrap();
            DeviceDelta {
                kind: now["kind"].as_str().unwrap().to_owned(),
                address: now["address"].as_str().unwrap().to_owned(),
                trapped_reads: gain("trapped_reads"),
                trapped_writes: gain("trapped_writes"),
                counters: gains(&numbers(&was["counters"]), &numbers(&now["counters"])),
            }
        };
        Self {
            exits: exits(after) - exits(before),
            reasons,
            devices: after["devices"].as_array().unwrap().iter().map(device).collect(),
        }
    }

    /// The first device of this kind, for example `virtio-blk`.
    pub(crate) fn device(&self, kind: &str) -> &DeviceDelta {
        let found = self.devices.iter().find(|device| device.kind == kind);
        found.unwrap_or_else(|| panic!("no {kind} among {:#?}", self.devices))
    }

    /// Fails unless neither a vCPU nor a device had anything that reached user space.
    #[track_caller]
    pub(crate) fn assert_no_exits(&self) {
        assert_eq!(self.exits, 0, "exits to user space: {:?}", self.reasons);
        for device in &self.devices {
            assert_eq!((device.trapped_reads, device.trapped_writes), (0, 0), "{device:?}");
        }
    }
}

impl DeviceDelta {
    /// What a counter gained; one that the device does not have fails the test.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        *self.counters.get(name).unwrap_or_else(|| panic!("{} has no counter {name}: {self:?}", self.kind))
    }
}

fn numbers(object: &Value) -> BTreeMap<String, u64> {
    let entries = object.as_object().into_iter().flatten();
    entries.map(|(name, value)| (name.clone(), value.as_u64().unwrap_or_default())).collect()
}

/// A counter that was not there before began at 0.
fn gains(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let gain =
        |(name, now): (&String, &u64)| (name.clone(), now - before.get(name).copied().unwrap_or_default());
    after.iter().map(gain).collect()
}
