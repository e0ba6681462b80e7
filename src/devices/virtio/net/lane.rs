//! One lane of a network device: a receive queue, a transmit queue, and in the first lane the control queue.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::Shared;
use super::control::{self, Effect, MAX_COMMAND};
use super::receive::Receiver;
use super::transmit::{Transmitter, Waits};
use crate::backend::tap::Tap;
use crate::devices::rate_limit::RateLimit;
use crate::devices::virtio::queue::{Chain, Queues};
use crate::devices::virtio::{Fault, HostSource, Listen, QueueHandler};

/// When the host takes no frame, this long passes before it is asked again: a tap does not tell when it would.
const RETRY: Duration = Duration::from_millis(1);
/// VIRTIO_NET_OK and VIRTIO_NET_ERR (virtio 1.2 §5.1.6.5).
const ACK: [u8; 2] = [0, 1];

/// What wakes a lane besides its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A frame came.
    Frame,
    /// The time of a limit on receiving has come.
    ReceiveLimit,
    /// The time of a limit on transmitting has come.
    TransmitLimit,
    /// It is time to ask the host again.
    Retry,
}

/// What a lane is made of.
#[derive(Debug)]
pub(super) struct LaneParts {
    pub(super) shared: Arc<Shared>,
    /// Indices of the receive and the transmit queue.
    pub(super) receive: usize,
    pub(super) transmit: usize,
    /// Where frames come from and go to, one each call.
    pub(super) host: OwnedFd,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) receive_limit: Option<RateLimit>,
    pub(super) transmit_limit: Option<RateLimit>,
    pub(super) control: Option<Control>,
}

/// The control queue and what its commands reach.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) queue: usize,
    pub(super) features: u64,
    pub(super) tap: Option<Arc<Tap>>,
    /// The most queue pairs the driver may use.
    pub(super) pairs: usize,
}

/// Serves the queues of one lane.
#[derive(Debug)]
pub(super) struct NetHandler {
    parts: LaneParts,
    retry: TimerFd,
    sources: Vec<(Source, i32)>,
}

impl NetHandler {
    pub(super) fn new(parts: LaneParts) -> Result<Self, Fault> {
        let retry = TimerFd::new().map_err(|error| Fault::Host(error.into()))?;
        let mut sources = vec![(Source::Frame, parts.host.as_raw_fd()), (Source::Retry, retry.as_raw_fd())];
        sources.extend(parts.receive_limit.iter().map(|limit| (Source::ReceiveLimit, limit.fd())));
        sources.extend(parts.transmit_limit.iter().map(|limit| (Source::TransmitLimit, limit.fd())));
        Ok(Self { parts, retry, sources })
    }

    fn transmit(&mut self, queues: &mut Queues) -> Result<(), Fault> {
        let LaneParts { shared, transmit, host, transmitter, transmit_limit, .. } = &mut self.parts;
        let Some(queue) = queues.get(*transmit) else { return Ok(()) };
        if transmitter.transmit(queue, host, shared, transmit_limit)? == Waits::Host
            && let Err(error) = self.retry.reset(RETRY, None)
        {
            return Err(Fault::Host(error.into()));
        }
        Ok(())
    }

    fn control(&mut self, queues: &mut Queues) -> Result<(), Fault> {
        let LaneParts { shared, control: Some(control), .. } = &self.parts else { return Ok(()) };
        let Some(queue) = queues.get(control.queue) else { return Ok(()) };
        queue.serve(|_, chain| control.serve(chain, shared))
    }
}

impl QueueHandler for NetHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        match index {
            _ if index == self.parts.transmit => self.transmit(queues),
            _ if self.parts.control.as_ref().is_some_and(|control| control.queue == index) => {
                self.control(queues)
            }
            // New receive buffers: the worker calls `on_host` next when frames wait for them.
            _ => Ok(()),
        }
    }

    fn host_sources(&self) -> Vec<HostSource> {
        self.sources.iter().map(|&(_, fd)| HostSource::new(fd)).collect()
    }

    fn on_host(&mut self, queues: &mut Queues, source: usize) -> Result<Listen, Fault> {
        let Some(&(source, _)) = self.sources.get(source) else { return Ok(Listen::No) };
        let parts = &mut self.parts;
        match source {
            Source::Frame => {
                let Some(queue) = queues.get(parts.receive) else { return Ok(Listen::No) };
                return parts.receiver.receive(queue, &parts.host, &parts.shared, &mut parts.receive_limit);
            }
            // Receiving goes on by itself, for it waits for any source.
            Source::ReceiveLimit => parts.receive_limit.iter_mut().for_each(RateLimit::settle),
            Source::TransmitLimit => {
                parts.transmit_limit.iter_mut().for_each(RateLimit::settle);
                self.transmit(queues)?;
            }
            Source::Retry => {
                // Set to no time, it is quiet.
                let _ = self.retry.reset(Duration::ZERO, None);
                self.transmit(queues)?;
            }
        }
        Ok(Listen::Yes)
    }

    fn quiesce(&mut self, queues: &mut Queues) -> Result<(), Fault> {
        if let Some(queue) = queues.get(self.parts.receive) {
            self.parts.receiver.put_back(queue);
            queue.announce()?;
        }
        Ok(())
    }
}

impl Drop for NetHandler {
    /// The driver was reset: a frame that waited for its buffers was for nobody.
    fn drop(&mut self) {
        if self.parts.receiver.holds_a_frame() {
            self.parts.shared.counters.rx_dropped.add(1);
        }
    }
}

/// Serves the control queue alone: the kernel moves the frames.
#[derive(Debug)]
pub(super) struct ControlHandler {
    pub(super) control: Control,
    pub(super) shared: Arc<Shared>,
}

impl QueueHandler for ControlHandler {
    fn on_queue(&mut self, queues: &mut Queues, index: usize) -> Result<(), Fault> {
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|_, chain| self.control.serve(chain, &self.shared))
    }
}

impl Control {
    /// Serves one command; its answer is the first byte the driver lets us write.
    fn serve(&self, chain: Chain<'_>, shared: &Shared) -> Result<u32, Fault> {
        if chain.clone().last().is_none_or(|last| last.has_next()) {
            return Err(Fault::Chain("a command has no end"));
        }
        let mut writer = chain.clone().writer()?;
        let mut reader = chain.reader()?;
        let mut command = vec![0; reader.available_bytes().min(MAX_COMMAND)];
        reader.read_exact(&mut command).map_err(Fault::Host)?;
        let whole = reader.available_bytes() == 0;
        let done = whole && self.execute(&command, shared);
        shared.counters.commands.add(1);
        let [ok, error] = ACK;
        let answer = if done { ok } else { error };
        writer.write_all(&[answer]).map_err(|_| Fault::Chain("a command has no room for its answer"))?;
        Ok(1)
    }

    fn execute(&self, command: &[u8], shared: &Shared) -> bool {
        let mut filter = (*shared.filter()).clone();
        match control::execute(command, self.features, self.pairs, &mut filter) {
            None => false,
            Some(Effect::Filter) => {
                shared.set_filter(filter);
                true
            }
            Some(Effect::Pairs(pairs)) => {
                let attach = |index| match &self.tap {
                    Some(tap) => tap.attach_queue(index, index < pairs).is_ok(),
                    None => true,
                };
                let all = (1..self.pairs).all(attach);
                shared.set_pairs(pairs);
                all
            }
            Some(Effect::Offloads(offloads)) => {
                let done = self.tap.as_ref().is_none_or(|tap| tap.set_offloads(offloads).is_ok());
                if done {
                    shared.set_offloads(offloads);
                }
                done
            }
        }
    }
}
