//! The status model, events, metrics, the socket server and its client.

pub mod model;
