//! A network interface's plan becomes its device.

use std::path::Path;

use vm_memory::GuestMemoryMmap;

use super::disks::rate;
use super::error::{MachineError, resource};
use crate::backend::tap::{Tap, TapSource};
use crate::devices::virtio::net::{DirectionRates, Net};
use crate::spec::plan::{DirectionPlan, NetPlan, TapPlan, VhostPlan};

/// Opens an interface's tap and puts the device on it.
pub(super) fn interface(plan: &NetPlan, memory: &GuestMemoryMmap) -> Result<Net, MachineError> {
    let source = match &plan.tap {
        TapPlan::New => TapSource::New,
        TapPlan::Named(name) => TapSource::Named(name.clone()),
        TapPlan::Descriptor(fd) => TapSource::Descriptor(*fd),
    };
    let tap = Tap::open(&source, plan.queues, plan.mtu)?;
    let rates =
        |plan: DirectionPlan| DirectionRates { bytes: plan.bytes.map(rate), frames: plan.packets.map(rate) };
    let mut net = Net::new(tap, plan.mac, rates(plan.receive), rates(plan.transmit))
        .map_err(resource("a network interface has no timer for its limits"))?;
    match plan.vhost {
        VhostPlan::On => net.hand_to_kernel(memory)?,
        VhostPlan::Auto if Path::new("/dev/vhost-net").exists() => {
            if let Err(error) = net.hand_to_kernel(memory) {
                tracing::info!("a network interface is served by us and not by the kernel: {error}");
            }
        }
        VhostPlan::Auto | VhostPlan::Off => {}
    }
    Ok(net)
}
