//! The threads behind an active device, one per lane: each waits for its doorbells and host descriptors, and calls its
//! handler.

mod reactor;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use self::reactor::Reactor;
use super::queue::{Leave, Queues};
use super::{Fault, Lane};

/// Told once when the guest breaks a queue of the device.
pub type OnFault = Box<dyn FnOnce(Fault) + Send>;

/// What a worker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Rest,
    Stop,
}

/// Where a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Running,
    Resting,
    Gone,
}

/// What a worker and those who command it share.
#[derive(Debug)]
struct Post {
    state: Mutex<(Order, Place)>,
    changed: Condvar,
    wake: EventFd,
    leave: Leave,
}

impl Post {
    fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new((Order::Run, Place::Running)),
            changed: Condvar::new(),
            wake: EventFd::new(libc::EFD_NONBLOCK)?,
            leave: Leave::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, (Order, Place)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order. One to stop is the last.
    fn order(&self, order: Order) {
        let mut state = self.lock();
        if state.0 == Order::Stop {
            return;
        }
        state.0 = order;
        if order == Order::Run {
            self.leave.stay();
        } else {
            self.leave.ask();
        }
        let _ = self.wake.write(1);
        self.changed.notify_all();
    }

    /// Waits until the worker serves no queue, at most so long; whether it does not.
    fn wait_for_rest(&self, patience: Duration) -> bool {
        let serving = |state: &mut (Order, Place)| state.1 == Place::Running;
        let waited = self.changed.wait_timeout_while(self.lock(), patience, serving);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The worker rests until it gets another order than to rest, which is returned.
    fn rest(&self) -> Order {
        let mut state = self.lock();
        state.1 = Place::Resting;
        self.changed.notify_all();
        let resting = |state: &mut (Order, Place)| state.0 == Order::Rest;
        let mut state = self.changed.wait_while(state, resting).unwrap_or_else(PoisonError::into_inner);
        state.1 = Place::Running;
        state.0
    }

    fn leave_for_good(&self) {
        self.lock().1 = Place::Gone;
        self.changed.notify_all();
    }
}

/// The running workers of one device.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<(JoinHandle<()>, Arc<Post>)>,
}

impl Workers {
    /// Starts a thread per lane, named `name`, that serves the lane's queues of `queues` until it is stopped, or until the
    /// guest breaks a queue of any of them. `notifications` counts how often the driver rang a doorbell.
    ///
    /// # Errors
    /// When a thread or a descriptor cannot be had.
    pub fn spawn(
        name: &str,
        lanes: Vec<Lane>,
        mut queues: Queues,
        notifications: &Arc<AtomicU64>,
        on_fault: OnFault,
    ) -> io::Result<Self> {
        let posts = lanes.iter().map(|_| Post::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        let everyone: Arc<[Arc<Post>]> = posts.clone().into();
        let on_fault = Arc::new(Mutex::new(Some(on_fault)));
        let mut all = Self { workers: Vec::new() };
        // Every reactor before the first thread: what cannot be had leaves no thread behind.
        let reactors = lanes.into_iter().zip(&posts).map(|(lane, post)| {
            let mut queues = queues.split_off(&lane.queues);
            queues.listen(&post.leave);
            Reactor::new(lane.handler, queues, Arc::clone(post), Arc::clone(notifications))
        });
        let reactors = reactors.collect::<io::Result<Vec<_>>>()?;
        for (reactor, post) in reactors.into_iter().zip(posts) {
            let (everyone, on_fault) = (Arc::clone(&everyone), Arc::clone(&on_fault));
            let watched = Arc::clone(&post);
            let work = move || {
                if let Err(fault) = reactor.run() {
                    let first = on_fault.lock().unwrap_or_else(PoisonError::into_inner).take();
                    // The device is one: none of its lanes goes on after a fault.
                    everyone.iter().for_each(|post| post.order(Order::Stop));
                    if let Some(tell) = first {
                        tell(fault);
                    }
                }
                watched.leave_for_good();
            };
            match std::thread::Builder::new().name(name.into()).spawn(work) {
                Ok(thread) => all.workers.push((thread, post)),
                Err(error) => {
                    all.stop();
                    return Err(error);
                }
            }
        }
        Ok(all)
    }

    /// Asks every worker to finish what it has begun and to rest.
    pub fn pause(&self) {
        self.order(Order::Rest);
    }

    /// Waits until every worker rests, or until `deadline`; whether they do.
    #[must_use]
    pub fn wait_for_rest(&self, deadline: Instant) -> bool {
        let rests = |post: &Post| post.wait_for_rest(deadline.saturating_duration_since(Instant::now()));
        self.workers.iter().all(|(_, post)| rests(post))
    }

    /// Lets them go on: also those that have not come to rest yet.
    pub fn resume(&self) {
        self.order(Order::Run);
    }

    /// Stops every thread after the chain it is serving.
    pub fn stop(self) {
        self.order(Order::Stop);
        for (thread, _) in self.workers {
            if thread.join().is_err() {
                tracing::error!("a device worker panicked; its device is lost to the guest");
            }
        }
    }

    fn order(&self, order: Order) {
        self.workers.iter().for_each(|(_, post)| post.order(order));
    }
}

/// Counts doorbells across a device's lanes.
fn count(notifications: &AtomicU64, rings: u64) {
    notifications.fetch_add(rings, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
