//! Requests done by threads that wait for them: for formats that are no plain file, and where io_uring is forbidden.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::EventFd;

use super::{Completion, Disk, Request, carry_out};

/// The most threads of one engine. They are started when there is work for them.
const MAX_THREADS: usize = 4;

/// A queue of requests, and the threads that take from it.
#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    event: Arc<EventFd>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Request>,
    done: Vec<Completion>,
    /// Threads that wait for work.
    idle: usize,
    closing: bool,
}

impl Threads {
    /// Completions ring `event`.
    pub(super) fn new(disk: Arc<dyn Disk>, event: Arc<EventFd>) -> Self {
        let shared = Shared { disk, event, state: Mutex::default(), work: Condvar::new() };
        Self { shared: Arc::new(shared), threads: Vec::new() }
    }

    /// Takes a request. The error says that there is no thread at all to do it.
    pub(super) fn submit(&mut self, request: Request) -> io::Result<()> {
        let mut state = self.shared.lock();
        if state.idle <= state.waiting.len() && self.threads.len() < MAX_THREADS {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new().name("disk-io".into()).spawn(move || shared.serve());
            match started {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => return Err(error),
                // The others get to it later.
                Err(_) => {}
            }
        }
        state.waiting.push_back(request);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Takes the completions.
    pub(super) fn completions(&self, into: &mut Vec<Completion>) {
        into.append(&mut self.shared.lock().done);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended the process.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(request) = state.waiting.pop_front() {
                drop(state);
                let result = carry_out(&*self.disk, &request);
                state = self.lock();
                state.done.push((request.tag, result));
                // The counter of an eventfd cannot overflow from this.
                let _ = self.event.write(1);
            } else if state.closing {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle = state.idle.saturating_sub(1);
            }
        }
    }
}
