//! The commands that mend a missing layer, by what is under the machine.
//!
//! Google's part is as documented in November 2026:
//! <https://cloud.google.com/kubernetes-engine/docs/how-to/nested-virtualization> (Standard clusters only; set when
//! the node pool is created; image `UBUNTU_CONTAINERD`, or `COS_CONTAINERD` from 1.28.4-gke.1083000 on) and
//! <https://cloud.google.com/compute/docs/instances/nested-virtualization/overview> (Intel Haswell or later; no AMD,
//! no Arm, no E2, no memory-optimised series; an organisation policy can forbid it).

use super::platform::{Cloud, Platform};

/// The node pool that has what Nestling needs.
const GKE_NODE_POOL: &str = "gcloud container node-pools create nested --cluster=CLUSTER --machine-type=n2-standard-4 \
     --image-type=UBUNTU_CONTAINERD --enable-nested-virtualization --node-labels=nested-virtualization=enabled, \
     and in the pod spec `nodeSelector: {nested-virtualization: enabled}`";

/// What makes the layer below offer VT-x or AMD-V to this machine.
pub(super) fn offer_virtualization(platform: &Platform, intel: bool) -> String {
    match (platform.cloud, platform.hypervisor.as_deref()) {
        (Some(Cloud::Google), _) => google(intel),
        (Some(Cloud::Amazon), Some(_)) => {
            "use a .metal instance type, or one that EC2 lists with nested virtualization".to_owned()
        }
        (_, Some("KVM")) => kvm(intel),
        (_, Some("Hyper-V")) => {
            "on the Hyper-V host: Set-VMProcessor -VMName VM -ExposeVirtualizationExtensions \
             $true; on Azure: a size that lists nested virtualization"
                .to_owned()
        }
        (_, Some("VMware")) => {
            "in the VM's settings: \"Expose hardware assisted virtualization to the guest OS\" (vhv.enable \
                = \"TRUE\")"
                .to_owned()
        }
        (_, Some("Xen")) => "in the domain's configuration: nestedhvm = 1".to_owned(),
        (_, Some("VirtualBox")) => "VBoxManage modifyvm VM --nested-hw-virt on".to_owned(),
        (_, Some(_)) => "the hypervisor under this machine must offer nested virtualization: use another \
            machine"
            .to_owned(),
        (_, None) if intel => {
            "switch on \"Intel Virtualization Technology (VT-x)\" in the firmware setup".to_owned()
        }
        (_, None) => "switch on \"SVM mode\" in the firmware setup".to_owned(),
    }
}

/// Nested virtualization is decided when the node pool is created, and only Intel series have it.
fn google(intel: bool) -> String {
    let why = if intel {
        "cannot be switched on for an existing node pool, and E2 has none"
    } else {
        "AMD and Arm series (N2D, C2D, C3D, C4D, T2D, T2A, …) have none"
    };
    format!(
        "{why}; on a GKE Standard cluster: {GKE_NODE_POOL}. If that is refused, an organisation policy forbids it \
         (constraints/compute.disableNestedVirtualization)"
    )
}

fn kvm(intel: bool) -> String {
    let module = if intel { "kvm_intel" } else { "kvm_amd" };
    format!(
        "on the host below: modprobe -r {module} && modprobe {module} nested=1, and give this VM the CPU model `host` \
         (QEMU -cpu host, libvirt <cpu mode='host-passthrough'/>)"
    )
}
