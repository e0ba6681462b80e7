//! What leads to programs of the host by Unix sockets: vsock, and the console's named ports.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::error::MachineError;
use crate::backend::port::PortSocket;
use crate::backend::vsock::{Inside, VsockListener, raise_descriptor_limit};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::console::ports::{NamedPort, Ports};
use crate::devices::virtio::vhost::vsock::VhostVsock;
use crate::devices::virtio::vsock::Vsock;
use crate::spec::plan::{MachinePlan, PortPlan, VsockHost};

/// The device with the named ports, if there are any.
pub(super) fn ports(plans: &[PortPlan]) -> Result<Option<Arc<Ports>>, MachineError> {
    if plans.is_empty() {
        return Ok(None);
    }
    let listen = |plan: &PortPlan| {
        PortSocket::listen(&plan.path).map(|socket| NamedPort { name: plan.name.clone(), socket })
    };
    Ok(Some(Arc::new(Ports::new(plans.iter().map(listen).collect::<Result<_, _>>()?))))
}

/// The guest's address and its connections at one time, when the device is there for the agent alone.
const AGENT_CID: u32 = 3;
const AGENT_CONNECTIONS: u32 = 1024;

/// The vsock device: ours with its sockets, the kernel's, or one for the agent alone; none, when nobody needs it.
pub(super) fn vsock(
    plan: &MachinePlan,
    inside: &Inside,
    memory: &GuestMemoryMmap,
) -> Result<Option<Arc<dyn VirtioDevice>>, MachineError> {
    let Some(plan) = &plan.vsock else {
        let alone = || Arc::new(Vsock::new(AGENT_CID, AGENT_CONNECTIONS, None, inside.clone())) as _;
        return Ok(plan.agent.then(alone));
    };
    let (path, connections) = match &plan.host {
        VsockHost::Sockets { path, connections } => (path, *connections),
        VsockHost::Kernel => return Ok(Some(Arc::new(VhostVsock::new(plan.cid, memory)?))),
    };
    // A connection is a descriptor, and the usual soft limit is there for programs that use select(2).
    match raise_descriptor_limit() {
        Ok(limit) if limit < u64::from(connections) => {
            tracing::warn!(
                limit,
                connections,
                "vsock: the limit of open files (ulimit -n) is lower than that of connections; what does not fit is refused"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "vsock: the limit of open files cannot be raised"),
    }
    let listener = VsockListener::bind(path)?;
    Ok(Some(Arc::new(Vsock::new(plan.cid, connections, Some(listener), inside.clone()))))
}
