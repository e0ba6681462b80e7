//! A network interface's plan becomes its device.

use std::path::Path;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::disks::rate;
use super::error::{MachineError, resource};
use crate::backend::tap::{Tap, TapSource};
use crate::devices::virtio::net::{DirectionRates, Net};
use crate::spec::plan::{DirectionPlan, NetPlan, TapPlan, VhostPlan};
use crate::status::operation::Refusal;

/// What is to be said of queue pairs that a guest with `cpus` vCPUs leaves unused: Linux takes one per vCPU at most.
fn spare_queues(queues: u16, cpus: u8) -> Option<String> {
    (queues > u16::from(cpus)).then(|| {
        let plural = if cpus == 1 { "" } else { "s" };
        format!(
            "a network interface has {queues} queue pairs, and a guest with {cpus} vCPU{plural} uses {cpus}, one per vCPU: give \
             it more with --cpus, or ask for queues={cpus}"
        )
    })
}

/// Opens an interface's tap and puts the device on it, for a guest with `cpus` vCPUs.
pub(super) fn interface(plan: &NetPlan, cpus: u8, memory: &GuestMemoryMmap) -> Result<Net, MachineError> {
    if let Some(words) = spare_queues(plan.queues, cpus) {
        tracing::warn!("{words}");
    }
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

/// Plugs the cable of an interface in or out, whose number or tap is `which`.
pub(super) fn set_link(nets: &[Arc<Net>], which: &str, up: bool) -> Result<(), Refusal> {
    let state = |up| if up { "up" } else { "down" };
    let numbered = || nets.iter().enumerate();
    let called = numbered().find(|(index, net)| index.to_string() == which || net.tap_name() == which);
    let (index, net) = called.ok_or_else(|| {
        let names: Vec<_> = numbered().map(|(index, net)| format!("{index} (tap {})", net.tap_name())).collect();
        if names.is_empty() {
            let none = "the machine has no network interface: it was started without --net";
            return Refusal::Cannot(none.to_owned());
        }
        let names = names.join(", ");
        Refusal::Bad(format!(
            "there is no network interface `{which}`: the machine has {names}; name one by its number or its tap, as in \
             `nestling link 0 {}`",
            state(up)
        ))
    })?;
    let before = state(net.link_is_up());
    net.set_link(up);
    tracing::info!(
        interface = index,
        tap = net.tap_name(),
        before,
        now = state(up),
        "a network link was set"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_pairs_beyond_the_vcpus_are_told() {
        assert_eq!(spare_queues(2, 2), None);
        let words = spare_queues(2, 1).expect("one too many");
        assert!(words.contains("has 2 queue pairs, and a guest with 1 vCPU uses 1"), "{words}");
    }

    #[test]
    fn a_machine_without_interfaces_says_so() {
        let refusal = set_link(&[], "0", true).expect_err("none");
        assert!(matches!(&refusal, Refusal::Cannot(words) if words.contains("without --net")), "{refusal}");
    }
}
