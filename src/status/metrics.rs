//! The status as OpenMetrics text.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::model::DeviceFacts;
use super::snapshot::{State, Status};

/// What the text is, for the HTTP header.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<const N: usize> = [(&'static str, String); N];
type Seconds = Gauge<f64, AtomicU64>;

/// A gauge or counter per set of labels. The registry is built anew for every scrape: the status is the one memory.
fn encode_counters<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<N>, u64)>,
) where
    Labels<N>: EncodeLabelSet,
{
    let family = Family::<Labels<N>, Counter>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).inc_by(value);
    }
    registry.register(name, help, family);
}

/// Writes every metric of a status.
///
/// # Errors
/// Never in practice: writing to a string does not fail.
pub(super) fn encode(status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("nestling");
    register_life(&mut registry, status);
    register_memory(&mut registry, status);
    register_exits(&mut registry, status);
    register_devices(&mut registry, &status.machine.devices);
    let mut text = String::new();
    encode_text(&mut text, &registry)?;
    Ok(text)
}

fn register_life(registry: &mut Registry, status: &Status) {
    let module = status.backend.as_ref().map_or("unknown", |backend| backend.kvm_module.as_str());
    let build = Info::new([("version", status.version.clone()), ("kvm_module", module.to_owned())]);
    registry.register("build", "Nestling's version and the KVM underneath", build);

    let states = Family::<Labels<1>, Gauge>::default();
    for state in State::ALL {
        let is_now = i64::from(state == status.state);
        states.get_or_create(&[("state", state.name().to_owned())]).set(is_now);
    }
    registry.register("state", "1 for the VM's state, 0 for every other", states);

    let stages = Family::<Labels<1>, Seconds>::default();
    for reached in &status.stages {
        stages.get_or_create(&[("stage", reached.stage.name().to_owned())]).set(seconds(reached.at.ms));
    }
    let help = "When a boot stage was reached, counted from the start of the process";
    registry.register_with_unit("boot_stage", help, Unit::Seconds, stages);

    let uptime = Seconds::default();
    uptime.set(seconds(status.uptime_ms));
    registry.register_with_unit("uptime", "Age of the process", Unit::Seconds, uptime);
}

fn register_memory(registry: &mut Registry, status: &Status) {
    let memory = &status.machine.memory;
    let mut kinds = vec![
        ("configured", memory.size_bytes),
        ("resident", memory.resident_bytes),
        ("huge", memory.huge_bytes),
        ("overhead", memory.overhead_bytes),
    ];
    if let Some(balloon) = &memory.balloon {
        kinds.extend([("target", balloon.target_bytes), ("balloon", balloon.balloon_bytes)]);
    }
    let help = "Guest RAM configured, touched, backed by huge pages, wanted for the guest and in the balloon, and the process' memory beyond it";
    let family = gauges("kind", kinds.into_iter().map(|(kind, bytes)| (kind.to_owned(), bytes)));
    registry.register_with_unit("memory", help, Unit::Bytes, family);

    // A gauge for each, because the guest may say what it likes: a counter must not fall.
    let values = memory.balloon.iter().flat_map(|balloon| &balloon.guest).flat_map(|guest| &guest.values);
    let family = gauges("statistic", values.map(|(name, value)| (name.clone(), *value)));
    registry.register("guest_memory", "What the guest says of its memory: bytes and events", family);
}

fn gauges(label: &'static str, values: impl Iterator<Item = (String, u64)>) -> Family<Labels<1>, Gauge> {
    let family = Family::<Labels<1>, Gauge>::default();
    for (name, value) in values {
        family.get_or_create(&[(label, name)]).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    family
}

fn register_exits(registry: &mut Registry, status: &Status) {
    let by_reason = status.machine.vcpus.iter().flat_map(|vcpu| {
        let id = vcpu.id.to_string();
        vcpu.exits
            .iter()
            .map(move |(reason, count)| ([("vcpu", id.clone()), ("reason", reason.clone())], *count))
    });
    encode_counters(registry, "exits", "vCPU exits to user space", by_reason);
    let all = status
        .machine
        .vcpus
        .iter()
        .filter_map(|vcpu| vcpu.kvm_exits_total.map(|count| ([("vcpu", vcpu.id.to_string())], count)));
    encode_counters(registry, "kvm_exits", "Every VM exit, those KVM handled itself included", all);
}

fn register_devices(registry: &mut Registry, devices: &[DeviceFacts]) {
    let trapped = devices.iter().flat_map(|device| {
        [("read", device.trapped_reads), ("write", device.trapped_writes)].map(|(access, count)| {
            let [kind, address] = device_labels(device);
            ([kind, address, ("access", access.to_owned())], count)
        })
    });
    encode_counters(
        registry,
        "device_trapped",
        "Device register accesses that exited to user space",
        trapped,
    );
    let counters = devices.iter().flat_map(|device| {
        device.counters.iter().map(|(name, count)| {
            let [kind, address] = device_labels(device);
            ([kind, address, ("counter", name.clone())], *count)
        })
    });
    encode_counters(registry, "device", "Device counters", counters);
}

fn device_labels(device: &DeviceFacts) -> Labels<2> {
    [("device", device.kind.clone()), ("address", device.address.clone())]
}

#[allow(clippy::cast_precision_loss)] // 2^53 ms are 285,000 years
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
