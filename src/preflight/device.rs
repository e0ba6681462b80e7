//! `/dev/kvm` as a file: is it there, is it the right one, may this process open it?

use super::cpu::CpuFacts;
use super::finding::{CheckId, Finding, Findings, Layer};
use super::host::{Device, DeviceNode, Host, Identity, NodeKind};
use super::module::ModuleFacts;
use super::text::errno_name;

/// The device all of this is about.
pub(super) const KVM: &str = "/dev/kvm";
/// The misc major and KVM's fixed minor (kernel Documentation/admin-guide/devices.txt).
const KVM_NUMBER: (u64, u64) = (10, 232);

impl DeviceNode {
    /// Whether this is KVM's device, whatever its name.
    pub(super) fn is_kvm(&self) -> bool {
        self.kind == NodeKind::Char && (self.major, self.minor) == KVM_NUMBER
    }
}

/// How a pod gets the device and the right to open it.
const GIVE_DEVICE: &str = "`securityContext: {privileged: true}` in the container (GKE Standard; Autopilot refuses it), \
     or a device plugin for kvm (`resources: {limits: {devices.kubevirt.io/kvm: 1}}`); with docker or podman: --device /dev/kvm";

/// Judges the device. `Err` names the finding because of which it cannot be used.
pub(super) fn check(
    host: &dyn Host,
    cpu: &CpuFacts,
    module: &ModuleFacts,
    device: &Device,
    findings: &mut Findings,
) -> Result<(), CheckId> {
    let cause = root_cause(cpu, module, findings);
    let node = match device {
        Device::Absent { errno } => return absent(*errno, cause, module, findings),
        Device::Refused { node, .. } | Device::Opened { node } => node,
    };
    if !node.is_kvm() {
        return blocked(CheckId::KvmDevice, wrong_node(node), cause, findings);
    }
    findings.add(Finding::ok(CheckId::KvmDevice, Layer::DeviceNode, describe(node)));
    match device {
        Device::Refused { errno, .. } => {
            let finding = refused(*errno, node, &host.identity());
            // Only "no driver behind it" can follow from a missing module; a permission is always its own trouble.
            let cause = cause.filter(|_| matches!(*errno, libc::ENODEV | libc::ENXIO | libc::ENOENT));
            blocked_open(finding, cause, findings)
        }
        _ => {
            findings.add(Finding::ok(
                CheckId::KvmOpen,
                Layer::Permission,
                format!("{KVM} opens for reading and writing"),
            ));
            Ok(())
        }
    }
}

/// The earlier finding that explains why there is no working device on this node, if there is one.
fn root_cause(cpu: &CpuFacts, module: &ModuleFacts, findings: &Findings) -> Option<CheckId> {
    if module.registered == Some(true) {
        return None;
    }
    if cpu.extension.is_none() {
        return Some(CheckId::CpuVmx);
    }
    findings.failed(CheckId::KvmModule).then_some(CheckId::KvmModule)
}

fn blocked(
    id: CheckId,
    finding: Finding,
    cause: Option<CheckId>,
    findings: &mut Findings,
) -> Result<(), CheckId> {
    let blocker = cause.unwrap_or(id);
    match cause {
        Some(cause) => findings.add_consequence(cause, finding),
        None => findings.add(finding),
    }
    findings.skip(CheckId::KvmOpen, Layer::Permission, blocker);
    Err(blocker)
}

fn blocked_open(finding: Finding, cause: Option<CheckId>, findings: &mut Findings) -> Result<(), CheckId> {
    match cause {
        Some(cause) => findings.add_consequence(cause, finding),
        None => findings.add(finding),
    }
    Err(cause.unwrap_or(CheckId::KvmOpen))
}

fn absent(
    errno: i32,
    cause: Option<CheckId>,
    module: &ModuleFacts,
    findings: &mut Findings,
) -> Result<(), CheckId> {
    let finding =
        Finding::error(CheckId::KvmDevice, Layer::DeviceNode, format!("{KVM}: {}", errno_name(errno)));
    let finding = match (cause, module.registered) {
        (Some(_), _) => finding.means("the node has no such device"),
        (None, Some(true)) => finding
            .means("the node has KVM (/proc/misc lists it), but this container was not given the device")
            .fix(GIVE_DEVICE),
        (None, _) => {
            finding.means("this container was not given the device, or the node has none").fix(GIVE_DEVICE)
        }
    };
    blocked(CheckId::KvmDevice, finding, cause, findings)
}

fn wrong_node(node: &DeviceNode) -> Finding {
    let finding = Finding::error(CheckId::KvmDevice, Layer::DeviceNode, describe(node));
    match node.kind {
        NodeKind::Directory | NodeKind::File => finding
            .means(
                "not a device: the container runtime made this in place of a host path that did not \
                exist on the node",
            )
            .fix(
                "in the hostPath volume: `type: CharDevice` (then the pod waits for a node that has \
                /dev/kvm)",
            ),
        _ => finding
            .means(format!("KVM is character device {}:{}, this is another one", KVM_NUMBER.0, KVM_NUMBER.1))
            .fix("rm /dev/kvm && mknod /dev/kvm c 10 232"),
    }
}

fn refused(errno: i32, node: &DeviceNode, identity: &Identity) -> Finding {
    let saw =
        format!("open {KVM}: {}; {}; this process: {}", errno_name(errno), describe(node), who(identity));
    let error = |layer| Finding::error(CheckId::KvmOpen, layer, saw.clone());
    match errno {
        libc::EACCES => permission(error(Layer::Permission), node, identity),
        libc::EPERM => error(Layer::Cgroup)
            .means(
                "the device cgroup of this container does not allow it: a hostPath mount shows the \
                device, but only the container runtime can open the cgroup for it",
            )
            .fix(GIVE_DEVICE),
        libc::ENODEV | libc::ENXIO => error(Layer::Module)
            .means(
                "the device node is there, but no driver is behind it: the KVM module is not loaded or \
                refused the machine (\"kvm: disabled by bios\")",
            )
            .fix("on the node: modprobe kvm_intel (or kvm_amd); dmesg | grep -i kvm says why it refuses"),
        libc::EBUSY => error(Layer::DeviceNode)
            .means("another hypervisor (VirtualBox, VMware) holds the CPU's virtualization")
            .fix("stop the other hypervisor on the node: lsmod | grep -e vboxdrv -e vmmon"),
        libc::EMFILE | libc::ENFILE => error(Layer::DeviceNode)
            .means("no more files may be opened")
            .fix("raise the limit of open files: ulimit -n"),
        _ => error(Layer::DeviceNode)
            .means("the device is there but does not open, for a reason this check does not know")
            .fix("dmesg | grep -i kvm on the node"),
    }
}

/// EACCES: either the permission bits say so, or something above them does.
fn permission(finding: Finding, node: &DeviceNode, identity: &Identity) -> Finding {
    if allowed_by_mode(node, identity) {
        return finding
            .means(
                "the permission bits allow it, so something above them refuses: SELinux or AppArmor, a \
                `nodev` mount, or a root without CAP_DAC_OVERRIDE",
            )
            .fix(
                "`securityContext: {privileged: true}`, or `seLinuxOptions: {type: spc_t}`; findmnt -T \
                /dev/kvm shows nodev",
            );
    }
    let group_may = node.mode & 0o060 == 0o060;
    if group_may && node.gid != 0 {
        return finding
            .means(
                "the device belongs to a group of the node that this process is not in; group numbers \
                differ from node image to node image",
            )
            .fix(format!(
                "in the pod spec: `securityContext: {{supplementalGroups: [{}]}}`, or `runAsUser: \
                0`",
                node.gid
            ));
    }
    finding.means("only its owner may open the device").fix(format!(
        "in the pod spec: `securityContext: {{runAsUser: {}}}`; or on the node: chmod 0666 {KVM}",
        node.uid
    ))
}

/// Whether the permission bits alone would let this process read and write.
fn allowed_by_mode(node: &DeviceNode, identity: &Identity) -> bool {
    let in_group = identity.gid == node.gid || identity.groups.contains(&node.gid);
    let shift = match () {
        () if identity.uid == 0 => return true,
        () if identity.uid == node.uid => 6,
        () if in_group => 3,
        () => 0,
    };
    node.mode >> shift & 0o6 == 0o6
}

/// `/dev/kvm is c 10:232, mode 0660, owner 0:109`.
fn describe(node: &DeviceNode) -> String {
    let kind = match node.kind {
        NodeKind::Char => format!("character device {}:{}", node.major, node.minor),
        NodeKind::Block => format!("block device {}:{}", node.major, node.minor),
        NodeKind::Directory => "a directory".to_owned(),
        NodeKind::File => "a regular file".to_owned(),
        NodeKind::Other => "neither device nor file".to_owned(),
    };
    format!("{KVM} is {kind}, mode {:04o}, uid {}, gid {}", node.mode, node.uid, node.gid)
}

fn who(identity: &Identity) -> String {
    format!("uid {}, gid {}, groups {:?}", identity.uid, identity.gid, identity.groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_that_fits_decides() {
        let node = DeviceNode { kind: NodeKind::Char, major: 10, minor: 232, mode: 0o606, uid: 7, gid: 8 };
        let who = |uid, gid, groups: &[u32]| Identity { uid, gid, groups: groups.to_vec() };
        assert!(allowed_by_mode(&node, &who(0, 0, &[])));
        assert!(allowed_by_mode(&node, &who(7, 1, &[])));
        assert!(!allowed_by_mode(&node, &who(1, 8, &[])), "group bits are 0 and `other` does not apply");
        assert!(!allowed_by_mode(&node, &who(1, 1, &[8])));
        assert!(allowed_by_mode(&node, &who(1, 1, &[2])));
    }
}
