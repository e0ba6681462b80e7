//! One VM's life inside the pod: its states, the signals that end it, and the exit code that says how it ended.

pub mod chain;
pub mod exit;
mod gate;
mod guest_agent;
mod life;
pub mod lifecycle;
pub mod limits;
pub mod run;
mod signals;
mod vm;
mod window;
