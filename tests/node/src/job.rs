//! What the host asks PID 1 to do: written into the initramfs as JSON.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where PID 1 finds its job.
pub(crate) const JOB: &str = "/.nestling-node/job.json";
/// Where PID 1 finds the modules it loads.
pub(crate) const MODULES: &str = "/.nestling-node/modules";
/// The archive's last file: the kernel stops unpacking without a word to us when memory is short.
pub(crate) const LAST: &str = "/.nestling-node/complete";

/// One program to run, and what is needed around it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The executable's path in the node.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory, made if missing.
    pub directory: PathBuf,
    /// In the order in which they load.
    pub modules: Vec<Module>,
    /// Files or directories to send back when the program has ended.
    pub collect: Vec<PathBuf>,
}

/// A kernel module to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Module {
    /// File name under [`MODULES`].
    pub file: String,
    /// Parameters as `insmod` takes them.
    pub parameters: String,
}

/// Announces a collected file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileHeader {
    /// Which entry of [`Job::collect`] it belongs to.
    pub request: usize,
    /// Path below that entry; empty when the entry itself is the file.
    pub below: PathBuf,
    /// Permission bits.
    pub mode: u32,
}
