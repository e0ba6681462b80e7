//! COM1: a 16550 UART. Every character is an exit, so it is there only on request.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::backend::console::{ConsoleHub, ConsoleInput};
use crate::devices::bus::BusDevice;

/// Ports in the block.
pub const PORTS: u64 = 8;
/// How long the input waits for the guest to empty the UART's FIFO, in milliseconds.
const FULL_FIFO_WAIT_MS: u8 = 10;

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct Sink(Arc<ConsoleHub>);

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The UART.
pub struct SerialPort {
    uart: Mutex<Serial<Interrupt, NoEvents, Sink>>,
}

impl SerialPort {
    /// A UART that writes to `console` and raises its interrupt through `interrupt`.
    #[must_use]
    pub fn new(console: Arc<ConsoleHub>, interrupt: EventFd) -> Self {
        Self { uart: Mutex::new(Serial::new(Interrupt(interrupt), Sink(console))) }
    }

    fn lock(&self) -> MutexGuard<'_, Serial<Interrupt, NoEvents, Sink>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let [value] = data {
            *value = self.lock().read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let [value] = *data {
            // A failed interrupt write means it is raised already.
            let _ = self.lock().write(offset as u8, value);
        }
    }
}

/// The thread that feeds console input to the UART.
#[derive(Debug)]
pub struct SerialInput {
    thread: JoinHandle<()>,
    stop: EventFd,
}

impl SerialInput {
    /// Starts it.
    ///
    /// # Errors
    /// When a thread or a descriptor cannot be had.
    pub fn spawn(
        port: Arc<SerialPort>,
        console: Arc<ConsoleHub>,
        stdin: Option<ConsoleInput>,
    ) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("serial-input".into())
            .spawn(move || feed(&port, &console, stdin, &stopped))?;
        Ok(Self { thread, stop })
    }

    /// Stops it.
    pub fn stop(self) {
        let _ = self.stop.write(1);
        let _ = self.thread.join();
    }
}

fn feed(port: &SerialPort, console: &ConsoleHub, mut stdin: Option<ConsoleInput>, stop: &EventFd) {
    loop {
        let room = port.lock().fifo_capacity();
        let wait = if room == 0 { PollTimeout::from(FULL_FIFO_WAIT_MS) } else { PollTimeout::NONE };
        // SAFETY: `stop` is open for the whole call.
        let stop = unsafe { BorrowedFd::borrow_raw(stop.as_raw_fd()) };
        // Without room the inputs are left out: one that hung up would end the wait at once, whatever the interest.
        let inputs = stdin.as_ref().map(AsFd::as_fd).into_iter().chain([console.input().as_fd()]);
        let waited = [stop].into_iter().chain(inputs.filter(|_| room > 0));
        let mut fds: Vec<_> = waited.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if poll(&mut fds, wait).is_err_and(|errno| errno != nix::errno::Errno::EINTR) {
            return;
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        if fds.first().is_some_and(is_ready) {
            return;
        }
        if room == 0 {
            continue;
        }
        let _ = port.lock().enqueue_raw_bytes(&console.input().read(room));
        let room = port.lock().fifo_capacity();
        if let Some(input) = stdin.as_mut().filter(|_| room > 0) {
            match input.read(room) {
                Some(data) => drop(port.lock().enqueue_raw_bytes(&data)),
                None => stdin = None,
            }
        }
    }
}
