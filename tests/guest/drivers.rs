//! What every other test of a device stands on: its driver is there.

use super::vm::{Kernel, Vm};

const EVERYWHERE: &str = "virtio_net vmw_vsock_virtio_transport virtio_balloon virtiofs pvpanic_mmio pvpanic_pci wdat_wdt \
                          button evdev tun";

#[test]
fn the_drivers_of_every_device_load_by_name() {
    for kernel in Kernel::ALL {
        // Debian's cloud kernel 6.1 has none.
        let more = if kernel == Kernel::Debian61 { "" } else { "vmgenid" };
        let script = format!(
            "set -e; probe load {EVERYWHERE} {more}; cd /sys/bus; ls virtio/drivers pci/drivers acpi/drivers \
             platform/drivers; test -c /dev/vsock; test -c /dev/net/tun; probe irqs; echo ALL DONE"
        );
        let ended = Vm::start_devices(kernel, &[], &script).end();
        ended.assert_all_done();
        let drivers: Vec<&str> = ended.console.split_whitespace().collect();
        let mut expected = vec!["virtio_net", "vmw_vsock_virtio_transport", "virtio_balloon", "virtiofs"];
        expected.extend(["pvpanic-mmio", "pvpanic-pci", "wdat_wdt", "button"]);
        expected.extend(if more.is_empty() { &[][..] } else { &["vmgenid"] });
        for driver in expected {
            assert!(drivers.contains(&driver), "{kernel:?} has no driver {driver}:\n{}", ended.console);
        }
        ended.assert_console("virtio0-input=");
    }
}
