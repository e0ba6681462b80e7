//! virtio-net (virtio 1.2 §5.1): an Ethernet interface whose other end is a tap.

mod control;
mod features;
mod filter;
mod header;
mod lane;
mod receive;
mod scatter;
mod shared;
mod transmit;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use self::features::{CTRL_VLAN, CTRL_VQ, MQ, MRG_RXBUF, guest_offloads, offered};
pub use self::filter::Mac;
use self::lane::{Control, ControlHandler, LaneParts, NetHandler};
use self::receive::Receiver;
use self::shared::Shared;
use self::transmit::Transmitter;
use super::vhost::VhostError;
use super::vhost::net::{self as vhost_net, PairSession};
use super::{Counters, F_EVENT_IDX, F_INDIRECT_DESC, Fault, Kind, Lane, Start, VirtioDevice};
use crate::backend::tap::Tap;
use crate::devices::rate_limit::{Rate, RateLimit};

/// Entries of a receive or transmit queue.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
/// Frames that may have waited in a queue of the tap before the driver came: its length, and some.
const MAX_STALE: usize = 2048;

/// How much a direction may move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectionRates {
    /// Bytes.
    pub bytes: Option<Rate>,
    /// Frames.
    pub frames: Option<Rate>,
}

/// A network device over a tap: as many queue pairs as the tap has queues.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: Mac,
    shared: Arc<Shared>,
    receive_limit: Option<RateLimit>,
    transmit_limit: Option<RateLimit>,
    /// The kernel's device for each queue pair; none when we move the frames.
    kernel: Vec<PairSession>,
}

impl Net {
    /// A device with this address, which limits what the guest receives and what it transmits.
    ///
    /// # Errors
    /// When the kernel has no timer for the limits.
    pub fn new(
        tap: Tap,
        mac: Mac,
        receive: DirectionRates,
        transmit: DirectionRates,
    ) -> std::io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::new(mac)),
            tap: Arc::new(tap),
            mac,
            receive_limit: RateLimit::new(receive.bytes, receive.frames)?,
            transmit_limit: RateLimit::new(transmit.bytes, transmit.frames)?,
            kernel: Vec::new(),
        })
    }

    /// Lets the kernel move the frames (vhost-net), between the guest and the tap. It counts none, holds none back for a
    /// limit, and filters none: the guest's own network stack drops what is not for it (virtio 1.2 §5.1.6.5.1).
    ///
    /// # Errors
    /// When `/dev/vhost-net` cannot be used.
    pub fn hand_to_kernel(&mut self, memory: &GuestMemoryMmap) -> Result<(), VhostError> {
        let mut kernel = Vec::new();
        for pair in 0..self.pairs() {
            let tap = self.host(pair).map_err(|error| VhostError::Unreachable(error.to_string()))?;
            kernel.push(vhost_net::open(pair.saturating_mul(2), memory, tap)?);
        }
        self.kernel = kernel;
        Ok(())
    }

    /// What the kernel can serve, if it does.
    fn kernel_features(&self) -> u64 {
        self.kernel.first().map_or(u64::MAX, |pair| pair.features())
    }

    /// The lanes that watch over the kernel's devices, and one for the control queue.
    fn kernel_lanes(&self, mut start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        let features = start.features;
        let pairs = if features & MQ == 0 { 1 } else { self.pairs() };
        let mut lanes = Vec::new();
        for (pair, kernel) in self.kernel.iter().take(pairs).enumerate() {
            let first = pair.saturating_mul(2);
            lanes.push(kernel.serve(&mut start, first..first.saturating_add(2))?);
        }
        if features & CTRL_VQ != 0 {
            let queue = pairs.saturating_mul(2);
            let control = Control { queue, features, tap: Some(Arc::clone(&self.tap)), pairs: self.pairs() };
            let handler = ControlHandler { control, shared: Arc::clone(&self.shared) };
            lanes.push(Lane { queues: vec![queue], handler: Box::new(handler) });
        }
        Ok(lanes)
    }

    /// Plugs the cable in or out: the driver sees it, and so does the host's end.
    pub fn set_link(&self, up: bool) {
        self.shared.set_link(up);
        // A tap without carrier takes the guest's frames all the same.
        self.kernel.iter().for_each(|pair| pair.set_open(up));
        // An older kernel leaves the carrier alone; frames are dropped all the same.
        let _ = self.tap.set_carrier(up);
    }

    /// Whether the cable is plugged in.
    #[must_use]
    pub fn link_is_up(&self) -> bool {
        self.shared.link_is_up()
    }

    /// The name of the tap at its other end.
    #[must_use]
    pub fn tap_name(&self) -> &str {
        self.tap.name()
    }

    /// Queue pairs there can be.
    fn pairs(&self) -> usize {
        self.tap.queue_count()
    }

    fn lane(
        &self,
        pair: usize,
        control: Option<usize>,
        memory: &GuestMemoryMmap,
        features: u64,
    ) -> Result<Lane, Fault> {
        let (receive, transmit) = (pair.saturating_mul(2), pair.saturating_mul(2).saturating_add(1));
        let share =
            |limit: &Option<RateLimit>| limit.as_ref().map(RateLimit::share).transpose().map_err(Fault::Host);
        let handler = NetHandler::new(LaneParts {
            shared: Arc::clone(&self.shared),
            receive,
            transmit,
            host: self.host(pair)?,
            receiver: Receiver::new(memory.clone(), features, self.tap.mtu()),
            transmitter: Transmitter::new(memory.clone(), features),
            receive_limit: share(&self.receive_limit)?,
            transmit_limit: share(&self.transmit_limit)?,
            control: control.map(|queue| Control {
                queue,
                features,
                tap: Some(Arc::clone(&self.tap)),
                pairs: self.pairs(),
            }),
        })?;
        let queues = [Some(receive), Some(transmit), control].into_iter().flatten().collect();
        Ok(Lane { queues, handler: Box::new(handler) })
    }

    fn lanes(&self, memory: &GuestMemoryMmap, features: u64) -> Result<Vec<Lane>, Fault> {
        let pairs = if features & MQ == 0 { 1 } else { self.pairs() };
        let control = (features & CTRL_VQ != 0).then(|| pairs.saturating_mul(2));
        let control_of = |pair: usize| control.filter(|_| pair == 0);
        (0..pairs).map(|pair| self.lane(pair, control_of(pair), memory, features)).collect()
    }

    fn host(&self, pair: usize) -> Result<OwnedFd, Fault> {
        let queue = self.tap.queue(pair).ok_or(Fault::Chain("there is no such queue pair"))?;
        queue.try_clone_to_owned().map_err(Fault::Host)
    }

    /// Brings the tap to what this driver wants, and forgets what came for the one before.
    fn prepare(&self, features: u64) -> Result<(), Fault> {
        let offloads = guest_offloads(features);
        self.tap.set_offloads(offloads).map_err(Fault::Host)?;
        for pair in 1..self.pairs() {
            self.tap.attach_queue(pair, false).map_err(Fault::Host)?;
        }
        for pair in 0..self.pairs() {
            let host = self.host(pair)?;
            let mut frame = [0; 64];
            let stale = (0..MAX_STALE).take_while(|_| nix::unistd::read(&host, &mut frame).is_ok()).count();
            self.shared.counters.rx_dropped.add(stale as u64);
        }
        self.shared.begin(self.mac, features & CTRL_VLAN != 0, offloads);
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind { id: 1, name: "virtio-net", class: [0x02, 0x00] }
    }

    fn features(&self) -> u64 {
        // Of a frame's shape, the kernel has to know this one; the rest is the tap's.
        let needs_kernel = MRG_RXBUF & !self.kernel_features();
        offered(self.pairs(), self.tap.has_uso()) & !needs_kernel
    }

    fn ring_features(&self) -> u64 {
        self.kernel_features() & (F_EVENT_IDX | F_INDIRECT_DESC)
    }

    /// receiveq1, transmitq1, …, controlq. A driver that does not take MQ finds its control queue in the place of the
    /// second receive queue (virtio 1.2 §5.1.2).
    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; self.pairs().saturating_mul(2)];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    /// `struct virtio_net_config` (virtio 1.2 §5.1.4) up to `mtu`.
    fn config(&self) -> Vec<u8> {
        let status = if self.shared.link_is_up() { LINK_UP } else { 0 };
        let mut config = self.mac.to_vec();
        config.extend_from_slice(&status.to_le_bytes());
        config.extend_from_slice(&(self.pairs() as u16).to_le_bytes());
        config.extend_from_slice(&self.tap.mtu().to_le_bytes());
        config
    }

    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        self.prepare(start.features)?;
        self.shared.listen(start.config.clone());
        if !self.kernel.is_empty() {
            return self.kernel_lanes(start);
        }
        self.lanes(start.memory, start.features)
    }

    fn counters(&self) -> Counters {
        let (shared, by_kernel) = (Arc::clone(&self.shared), !self.kernel.is_empty());
        Box::new(move || if by_kernel { shared.counters.without_frames() } else { shared.counters.by_name() })
    }

    fn backend(&self) -> Option<String> {
        let kernel = if self.kernel.is_empty() { "" } else { " by vhost-net, which counts no frames" };
        Some(format!("tap {}{kernel}, {}", self.tap.name(), self.shared.describe(self.pairs())))
    }
}

#[cfg(test)]
mod tests;
