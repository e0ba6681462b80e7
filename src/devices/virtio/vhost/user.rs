//! A back end in another process: the front end's half of the vhost-user protocol, over a Unix socket.
//!
//! The process maps guest memory, so this memory is a memfd (`vmm::memory`).

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{Backend, Ring, VhostError};
use crate::devices::virtio::F_VERSION_1;

/// A back end that answers nothing for so long is given up: a vCPU waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The protocol features we know what to do with.
const KNOWN: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::REPLY_ACK.union(VhostUserProtocolFeatures::MQ);
/// The feature bit that is vhost-user's own and no driver's.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// One connection to a back end.
pub struct VhostUser {
    name: String,
    frontend: Frontend,
    /// The same socket, to watch and to cut.
    socket: UnixStream,
    features: u64,
    patience: Duration,
    /// Keeps whatever the connection needs, for example the process.
    _keep: Box<dyn Send>,
}

impl VhostUser {
    /// Talks to the back end at the other end of `socket`, which has to serve `queues` queues. `keep` is dropped after the
    /// connection.
    ///
    /// # Errors
    /// When it is silent, breaks the protocol, or lacks something.
    pub fn new(
        name: String,
        socket: UnixStream,
        queues: usize,
        keep: Box<dyn Send>,
    ) -> Result<Self, VhostError> {
        Self::with_patience(name, socket, queues, keep, PATIENCE)
    }

    pub(super) fn with_patience(
        name: String,
        socket: UnixStream,
        queues: usize,
        keep: Box<dyn Send>,
        patience: Duration,
    ) -> Result<Self, VhostError> {
        let lost =
            |error: std::io::Error| VhostError::Unreachable(format!("{name} cannot be reached: {error}"));
        let watched = socket.try_clone().map_err(lost)?;
        let frontend = Frontend::from_stream(socket, queues as u64);
        let mut user = Self { name, frontend, socket: watched, features: 0, patience, _keep: keep };
        user.features = user.within_patience(|user| user.negotiate(queues as u64))?;
        Ok(user)
    }

    /// Agrees on everything but the driver's features.
    fn negotiate(&mut self, queues: u64) -> Result<u64, VhostError> {
        let refused = |doing| VhostError::refused(&self.name, doing);
        let lacks = |what: String| VhostError::Lacks { who: self.name.clone(), what };
        let mut frontend = self.frontend.clone();
        frontend.set_owner().map_err(refused("our claim to it (SET_OWNER)"))?;
        let features =
            frontend.get_features().map_err(refused("the question for its features (GET_FEATURES)"))?;
        if features & F_VERSION_1 == 0 {
            return Err(lacks("VIRTIO_F_VERSION_1".to_owned()));
        }
        if features & PROTOCOL_FEATURES == 0 {
            return Ok(features);
        }
        let offered = frontend
            .get_protocol_features()
            .map_err(refused("the question for its protocol features (GET_PROTOCOL_FEATURES)"))?;
        let agreed = offered & KNOWN;
        frontend
            .set_protocol_features(agreed)
            .map_err(refused("our protocol features (SET_PROTOCOL_FEATURES)"))?;
        if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if agreed.contains(VhostUserProtocolFeatures::MQ) {
            let has = frontend.get_queue_num();
            let has = has.map_err(refused("the question for its number of queues (GET_QUEUE_NUM)"))?;
            if has < queues {
                return Err(lacks(format!("queues: it has {has}, and {queues} are needed")));
            }
        }
        Ok(features)
    }

    fn start_rings(
        &self,
        features: u64,
        memory: &GuestMemoryMmap,
        rings: &[Ring],
        broken: &EventFd,
    ) -> Result<(), VhostError> {
        let refused = |doing| VhostError::refused(&self.name, doing);
        let has_protocol = self.features & PROTOCOL_FEATURES;
        self.frontend
            .set_features(features | has_protocol)
            .map_err(refused("the driver's features (SET_FEATURES)"))?;
        let regions = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<vhost::Result<Vec<_>>>()
            .map_err(refused("guest memory, which has to be shared"))?;
        self.frontend.set_mem_table(&regions).map_err(refused("guest memory (SET_MEM_TABLE)"))?;
        for ring in rings {
            let addresses = in_our_addresses(&ring.addresses(), memory).map_err(refused("a ring's place"))?;
            ring.hand_over(&self.frontend, &self.name, ring.index, &addresses, broken)?;
            if has_protocol != 0 {
                let enabled = self.frontend.clone().set_vring_enable(ring.index, true);
                enabled.map_err(refused("the word to begin (SET_VRING_ENABLE)"))?;
            }
        }
        Ok(())
    }

    /// Does `work` with somebody who cuts the connection when it takes too long: there is no other way out of a read.
    fn within_patience<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, VhostError>,
    ) -> Result<T, VhostError> {
        let (socket, patience) = (self.socket.try_clone(), self.patience);
        let unreachable = |error: std::io::Error| VhostError::Unreachable(error.to_string());
        let socket = socket.map_err(unreachable)?;
        let (done, is_done) = mpsc::channel::<()>();
        let wait = move || {
            let is_late = is_done.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout);
            if is_late {
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            is_late
        };
        let watch =
            thread::Builder::new().name("vhost-user-watch".into()).spawn(wait).map_err(unreachable)?;
        let result = work(self);
        drop(done);
        match watch.join() {
            Ok(true) => {
                let doing = match result {
                    Err(VhostError::Refused { doing, .. }) => doing,
                    _ => "the last of our messages",
                };
                Err(VhostError::Silent { who: self.name.clone(), doing, patience })
            }
            _ => result,
        }
    }
}

impl Backend for VhostUser {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    fn start(
        &mut self,
        features: u64,
        memory: &GuestMemoryMmap,
        rings: &[Ring],
        broken: &EventFd,
    ) -> Result<(), VhostError> {
        self.within_patience(|user| user.start_rings(features, memory, rings, broken))
    }

    /// Stopping a ring is asking for its next entry.
    fn stop(&mut self, rings: &[Ring]) -> Result<Vec<u16>, VhostError> {
        self.within_patience(|user| {
            let ask = |ring: &Ring| user.frontend.get_vring_base(ring.index).map(|next| next as u16);
            rings
                .iter()
                .map(ask)
                .collect::<vhost::Result<_>>()
                .map_err(VhostError::refused(&user.name, "the word to stop (GET_VRING_BASE)"))
        })
    }

    fn hangup(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }
}

/// vhost-user wants addresses as our process has them, and turns them back by the memory table.
fn in_our_addresses(ring: &VringConfigData, memory: &GuestMemoryMmap) -> vhost::Result<VringConfigData> {
    let ours = |address: u64| memory.get_host_address(GuestAddress(address)).map(|pointer| pointer as u64);
    let translate = || {
        Ok::<_, vm_memory::GuestMemoryError>(VringConfigData {
            desc_table_addr: ours(ring.desc_table_addr)?,
            avail_ring_addr: ours(ring.avail_ring_addr)?,
            used_ring_addr: ours(ring.used_ring_addr)?,
            ..*ring
        })
    };
    translate().map_err(|_| vhost::Error::InvalidQueue)
}
