//! One worker's loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Order, Post, count};
use crate::devices::virtio::queue::Queues;
use crate::devices::virtio::{Fault, Listen, QueueHandler};

/// What woke the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Order,
    Host(usize),
    Queue(usize),
}

impl Token {
    const HOST: u64 = 1 << 32;
    const QUEUE: u64 = 2 << 32;

    fn encode(self) -> u64 {
        match self {
            Self::Order => 0,
            Self::Host(source) => Self::HOST | source as u64,
            Self::Queue(index) => Self::QUEUE | index as u64,
        }
    }

    fn decode(data: u64) -> Self {
        let number = (data & 0xffff_ffff) as usize;
        match data & !0xffff_ffff {
            Self::HOST => Self::Host(number),
            Self::QUEUE => Self::Queue(number),
            _ => Self::Order,
        }
    }
}

/// A host descriptor, and whether the handler wants to hear of it.
#[derive(Debug)]
struct Source {
    fd: RawFd,
    /// Epoll tells when it can be read. It refuses regular files and /dev/null, because they never make anybody wait:
    /// those are always ready.
    polled: bool,
    listen: Listen,
}

/// A handler, its queues, and the descriptors that wake them.
pub(super) struct Reactor {
    epoll: Epoll,
    handler: Box<dyn QueueHandler>,
    queues: Queues,
    sources: Vec<Source>,
    post: Arc<Post>,
    notifications: Arc<AtomicU64>,
}

impl Reactor {
    pub(super) fn new(
        handler: Box<dyn QueueHandler>,
        queues: Queues,
        post: Arc<Post>,
        notifications: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add = |fd: RawFd, token: Token| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token.encode()))
        };
        add(post.wake.as_raw_fd(), Token::Order)?;
        for (index, queue) in queues.0.iter().enumerate() {
            if let Some(queue) = queue {
                add(queue.notify().as_raw_fd(), Token::Queue(index))?;
            }
        }
        let mut sources = Vec::new();
        for (number, source) in handler.host_sources().into_iter().enumerate() {
            let polled = add(source.fd, Token::Host(number)).is_ok();
            let mut source_state = Source { fd: source.fd, polled, listen: Listen::Yes };
            if source.pending {
                listen_to(&epoll, number, &mut source_state, Listen::Later);
            }
            sources.push(source_state);
        }
        Ok(Self { epoll, handler, queues, sources, post, notifications })
    }

    /// Serves until it is told to stop.
    pub(super) fn run(mut self) -> Result<(), Fault> {
        self.serve_waiting_sources(None)?;
        let mut events = [EpollEvent::default(); 16];
        loop {
            let ready_source =
                self.sources.iter().any(|source| !source.polled && source.listen == Listen::Yes);
            let count = match self.epoll.wait(if ready_source { 0 } else { -1 }, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Host(error)),
            };
            for number in 0..self.sources.len() {
                if self
                    .sources
                    .get(number)
                    .is_some_and(|source| !source.polled && source.listen == Listen::Yes)
                {
                    self.serve_host(number)?;
                }
            }
            for event in events.get(..count).unwrap_or_default() {
                match Token::decode(event.data()) {
                    Token::Order => {
                        if self.obey()? == Order::Stop {
                            return Ok(());
                        }
                    }
                    Token::Host(number) => {
                        self.serve_host(number)?;
                        self.serve_waiting_sources(Some(number))?;
                    }
                    Token::Queue(index) => self.serve_queue(index)?,
                }
            }
        }
    }

    fn obey(&mut self) -> Result<Order, Fault> {
        let _ = self.post.wake.read();
        let mut order = self.post.lock().0;
        if order != Order::Run {
            self.handler.quiesce(&mut self.queues)?;
            if order == Order::Rest {
                order = self.post.rest();
                if order == Order::Run {
                    self.handler.go_on(&mut self.queues)?;
                }
            }
        }
        // Each queue may have been left in the middle, also for an order that was taken back before it was read here.
        self.queues.0.iter_mut().flatten().for_each(super::super::queue::DeviceQueue::ring_again);
        Ok(order)
    }

    fn serve_queue(&mut self, index: usize) -> Result<(), Fault> {
        // Takes the doorbell's count, so that it wakes the worker again only when it is rung again.
        let Some(queue) = self.queues.get(index) else { return Ok(()) };
        count(&self.notifications, queue.take_rings());
        self.handler.on_queue(&mut self.queues, index)?;
        self.serve_waiting_sources(None)
    }

    /// Something has changed: asks the sources that wait, except the one that was just asked.
    fn serve_waiting_sources(&mut self, except: Option<usize>) -> Result<(), Fault> {
        for number in (0..self.sources.len()).filter(|&number| except != Some(number)) {
            if self.sources.get(number).is_some_and(|source| source.listen == Listen::Later) {
                self.serve_host(number)?;
            }
        }
        Ok(())
    }

    fn serve_host(&mut self, number: usize) -> Result<(), Fault> {
        // An event that was fetched before its source was given up.
        if self.sources.get(number).is_none_or(|source| source.listen == Listen::No) {
            return Ok(());
        }
        let listen = self.handler.on_host(&mut self.queues, number)?;
        if let Some(source) = self.sources.get_mut(number) {
            listen_to(&self.epoll, number, source, listen);
        }
        Ok(())
    }
}

/// A source nobody listens to is taken out: one that hung up would wake the worker without end, whatever the interest.
fn listen_to(epoll: &Epoll, number: usize, source: &mut Source, listen: Listen) {
    let operation = match (source.listen == Listen::Yes, listen == Listen::Yes) {
        (true, false) => Some(ControlOperation::Delete),
        (false, true) => Some(ControlOperation::Add),
        _ => None,
    };
    source.listen = listen;
    let event = EpollEvent::new(EventSet::IN, Token::Host(number).encode());
    if let Some(operation) = operation.filter(|_| source.polled)
        && let Err(error) = epoll.ctl(operation, source.fd, event)
    {
        tracing::warn!(%error, "a device's host descriptor cannot be waited for any more");
    }
}
