//! The status model, events, metrics, the socket server and its client.
//!
//! ```text
//!   agent ──▶ publisher::Publisher ──▶ snapshot::Status ──▶ GET /v1/status, the status file, probes
//!                  │                        └──▶ metrics ──▶ GET /metrics
//!                  └──▶ events::EventLog ──▶ GET /v1/events
//! ```
//!
//! The publisher is the only writer. Everybody else reads what it published.

mod asking;
pub mod client;
pub mod clock;
pub mod console;
pub mod durable;
mod events;
mod idle;
mod metrics;
pub mod model;
pub mod operation;
mod patience;
pub mod plan;
pub mod probe;
pub mod publisher;
mod reason;
mod routes;
pub mod server;
pub mod snapshot;
pub mod socket;
mod stream;
