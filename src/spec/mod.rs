//! What the user wrote (YAML or flags), turned once into a validated [`plan::RunPlan`].
//!
//! Two steps. A spec file ([`yaml`]) and the flags both become a [`config::Config`]: what was typed, each value with
//! the place it was typed at. [`config::Config::resolve`] then checks everything that can be checked before anything
//! is started, and gives the plan. Nothing below this room checks these values again.

mod balloon;
mod command;
pub mod config;
mod console;
pub mod disk;
pub mod error;
mod files;
pub mod net;
mod options;
pub mod port;
mod resolve;
mod rng;
pub mod share;
pub mod size;
pub mod vsock;
pub mod yaml;

pub mod plan;

pub(crate) use files::in_words;
