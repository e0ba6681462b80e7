//! The thread behind an active device: it waits for doorbells and a host descriptor, and calls the device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Leave, Queues};
use super::{Fault, Listen, VirtioDevice};

/// A device, held by its transport and locked by its worker while it serves.
pub type SharedDevice = Arc<Mutex<dyn VirtioDevice>>;

/// Told once when the guest breaks a queue.
pub type OnFault = Box<dyn FnOnce(Fault) + Send>;

/// What woke the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Stop,
    Host,
    Queue(usize),
}

impl Token {
    fn encode(self) -> u64 {
        match self {
            Self::Stop => 0,
            Self::Host => 1,
            Self::Queue(index) => (index as u64).saturating_add(2),
        }
    }

    fn decode(data: u64) -> Self {
        match data {
            0 => Self::Stop,
            1 => Self::Host,
            index => Self::Queue(index.saturating_sub(2) as usize),
        }
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    thread: JoinHandle<()>,
    stop: EventFd,
    leave: Leave,
}

impl Worker {
    /// Starts a thread that serves `queues` until it is stopped, or until the guest breaks a queue.
    ///
    /// # Errors
    /// When a thread or a descriptor cannot be had.
    pub fn spawn(device: SharedDevice, mut queues: Queues, on_fault: OnFault) -> io::Result<Self> {
        let (stop, leave) = (EventFd::new(libc::EFD_NONBLOCK)?, queues.listen());
        let reactor = Reactor::new(&device, &queues, stop.try_clone()?)?;
        let name = device.lock().unwrap_or_else(PoisonError::into_inner).kind().name;
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || reactor.run(&device, queues, on_fault))?;
        Ok(Self { thread, stop, leave })
    }

    /// Stops the thread after the chain it is serving.
    pub fn stop(self) {
        self.ask_to_stop();
        if self.thread.join().is_err() {
            tracing::error!("a device worker panicked; its device is lost to the guest");
        }
    }

    fn ask_to_stop(&self) {
        self.leave.ask();
        let _ = self.stop.write(1);
    }
}

/// The descriptors a worker waits on.
struct Reactor {
    epoll: Epoll,
    stop: EventFd,
    host: Host,
    listen: Listen,
}

/// How the device's host source tells that it can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    /// There is none.
    None,
    /// Epoll says so.
    Polled(RawFd),
    /// Always: epoll refuses regular files and /dev/null, because they never make anybody wait.
    AlwaysReady,
}

impl Reactor {
    fn new(device: &SharedDevice, queues: &Queues, stop: EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add = |fd: RawFd, token: Token| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token.encode()))
        };
        add(stop.as_raw_fd(), Token::Stop)?;
        for (index, queue) in queues.0.iter().enumerate() {
            if let Some(queue) = queue {
                add(queue.notify().as_raw_fd(), Token::Queue(index))?;
            }
        }
        let source = device.lock().unwrap_or_else(PoisonError::into_inner).host_source();
        let host = match source {
            None => Host::None,
            Some(source) if add(source.fd, Token::Host).is_ok() => Host::Polled(source.fd),
            Some(_) => Host::AlwaysReady,
        };
        let listen = if host == Host::None { Listen::No } else { Listen::Yes };
        let mut reactor = Self { epoll, stop, host, listen };
        if source.is_some_and(|source| source.pending) {
            reactor.listen_to_host(Listen::Later);
        }
        Ok(reactor)
    }

    fn run(mut self, device: &SharedDevice, mut queues: Queues, on_fault: OnFault) {
        let outcome = self.serve(device, &mut queues);
        if let Err(fault) = outcome {
            on_fault(fault);
        }
        device.lock().unwrap_or_else(PoisonError::into_inner).on_stop();
    }

    fn serve(&mut self, device: &SharedDevice, queues: &mut Queues) -> Result<(), Fault> {
        let mut events = [EpollEvent::default(); 8];
        if self.listen == Listen::Later {
            self.serve_host(&mut *device.lock().unwrap_or_else(PoisonError::into_inner), queues)?;
        }
        loop {
            let host_is_ready = self.host == Host::AlwaysReady && self.listen == Listen::Yes;
            let ready = match self.epoll.wait(if host_is_ready { 0 } else { -1 }, &mut events) {
                Ok(count) => events.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "a device worker cannot wait for events");
                    return Ok(());
                }
            };
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            if host_is_ready {
                self.serve_host(&mut *device, queues)?;
            }
            for event in ready {
                match Token::decode(event.data()) {
                    Token::Stop => return Ok(()),
                    Token::Host => self.serve_host(&mut *device, queues)?,
                    Token::Queue(index) => {
                        drain(queues, index);
                        device.on_queue(queues, index)?;
                        if self.listen == Listen::Later {
                            self.serve_host(&mut *device, queues)?;
                        }
                    }
                }
            }
        }
    }

    fn serve_host(&mut self, device: &mut dyn VirtioDevice, queues: &mut Queues) -> Result<(), Fault> {
        let listen = device.on_host(queues)?;
        self.listen_to_host(listen);
        Ok(())
    }

    /// A source nobody listens to is taken out: one that hung up would wake the worker without end, whatever the interest.
    fn listen_to_host(&mut self, listen: Listen) {
        let operation = match (self.listen == Listen::Yes, listen == Listen::Yes) {
            (true, false) => Some(ControlOperation::Delete),
            (false, true) => Some(ControlOperation::Add),
            _ => None,
        };
        self.listen = listen;
        let event = EpollEvent::new(EventSet::IN, Token::Host.encode());
        if let (Some(operation), Host::Polled(fd)) = (operation, self.host)
            && let Err(error) = self.epoll.ctl(operation, fd, event)
        {
            tracing::warn!(%error, "a device's host descriptor cannot be waited for any more");
        }
    }
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor").field("stop", &self.stop).finish_non_exhaustive()
    }
}

/// Takes the doorbell's count, so that it wakes the worker again only when it is rung again.
fn drain(queues: &mut Queues, index: usize) {
    if let Some(queue) = queues.get(index) {
        let _ = queue.notify().read();
    }
}

#[cfg(test)]
mod tests;
