//! The signals that ask a run to stop.

use std::future::pending;
use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Signals that may wait for us; the second one already ends the process.
const PENDING: usize = 4;

/// Signals within this time of the first are the same order: timeout(1) of coreutils, for one, sends its own to the process and
/// then to the process group.
pub(super) const ONE_ORDER: Duration = Duration::from_millis(500);

/// A signal that asks for a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopSignal {
    Terminate,
    Interrupt,
    /// The terminal or the connection behind it is gone.
    HangUp,
}

impl StopSignal {
    /// The signal's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::HangUp => "SIGHUP",
        }
    }
}

/// The stop signals of this process, in the order they came.
#[derive(Debug)]
pub(super) struct Signals {
    arrived: mpsc::Receiver<StopSignal>,
    /// When the first of them was heard.
    first: Option<Instant>,
}

impl Signals {
    /// Listens for them. As PID 1 a process gets no signal that it has not asked for, so this comes before anything
    /// else. Must be called inside a tokio runtime.
    pub(super) fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let (sender, arrived) = mpsc::channel(PENDING);
        tokio::spawn(async move {
            loop {
                let signal = tokio::select! {
                    _ = terminate.recv() => StopSignal::Terminate,
                    _ = interrupt.recv() => StopSignal::Interrupt,
                    _ = hang_up.recv() => StopSignal::HangUp,
                };
                if sender.send(signal).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { arrived, first: None })
    }

    /// Signals that a test sends.
    #[cfg(test)]
    pub(super) fn from_channel(arrived: mpsc::Receiver<StopSignal>) -> Self {
        Self { arrived, first: None }
    }

    /// The next signal. One that came before this call is not lost.
    pub(super) async fn next(&mut self) -> StopSignal {
        match self.arrived.recv().await {
            Some(signal) => {
                self.first.get_or_insert_with(Instant::now);
                signal
            }
            None => pending().await,
        }
    }

    /// Whether the last signal came along with the first one.
    pub(super) fn is_one_order(&self) -> bool {
        self.first.is_some_and(|first| first.elapsed() < ONE_ORDER)
    }

    /// The next signal of somebody who does not want to wait: it comes after another one, and not along with it.
    pub(super) async fn again(&mut self) -> StopSignal {
        loop {
            let before = self.first;
            let signal = self.next().await;
            if before.is_some_and(|first| first.elapsed() >= ONE_ORDER) {
                return signal;
            }
        }
    }
}
