//! A machine recorded as a directory: its files as they were, and `host.json` for what cannot be a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::guest_mode::GuestMode;
use super::host::{CpuidLeaves, Device, Host, Identity, KvmAnswers};

/// The file beside `proc/` and `sys/` in a recorded tree.
pub(super) const ANSWERS_FILE: &str = "host.json";

/// What a machine answered that cannot be recorded as a file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answers {
    /// Where the tree comes from: recorded when and where, or reconstructed from what.
    pub origin: String,
    /// CPUID, one entry per CPU.
    pub cpuid: Vec<CpuidLeaves>,
    /// Devices by path; one that is missing here answers ENOENT.
    pub devices: BTreeMap<String, Device>,
    /// Files that could not be read, with the error number; any other missing file answers ENOENT.
    pub unreadable: BTreeMap<String, i32>,
    /// Directory listings by path.
    pub listings: BTreeMap<String, Vec<String>>,
    /// Environment variables that were set, names only.
    pub env: Vec<String>,
    /// Effective ids.
    pub identity: Identity,
    /// What `/dev/kvm` said, if it was asked.
    pub kvm: Option<KvmAnswers>,
}

/// Why a recorded tree could not be loaded or written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file or directory of the tree.
    #[error("{}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `host.json` is not what it should be.
    #[error("{}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
}

/// A machine played back from a directory.
#[derive(Debug, Clone)]
pub struct RecordedHost {
    root: PathBuf,
    answers: Answers,
}

impl RecordedHost {
    /// Loads a tree.
    ///
    /// # Errors
    /// When `host.json` is missing or malformed.
    pub fn load(root: impl Into<PathBuf>) -> Result<Self, TreeError> {
        let root = root.into();
        let path = root.join(ANSWERS_FILE);
        let text = std::fs::read(&path).map_err(|source| TreeError::Io { path: path.clone(), source })?;
        let answers = serde_json::from_slice(&text).map_err(|source| TreeError::Json { path, source })?;
        Ok(Self::new(root, answers))
    }

    /// Plays back the files under `root` with the given answers.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, answers: Answers) -> Self {
        Self { root: root.into(), answers }
    }

    /// What cannot be a file.
    #[must_use]
    pub fn answers(&self) -> &Answers {
        &self.answers
    }
}

impl Host for RecordedHost {
    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        if let Some(errno) = self.answers.unreadable.get(path) {
            return Err(Errno::from_raw(*errno));
        }
        std::fs::read(in_tree(&self.root, path))
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    fn list(&self, dir: &str, prefix: &str) -> Result<Vec<String>, Errno> {
        let names = self.answers.listings.get(dir).ok_or(Errno::ENOENT)?;
        Ok(names.iter().filter(|name| name.starts_with(prefix)).cloned().collect())
    }

    fn device(&self, path: &str) -> Device {
        self.answers.devices.get(path).cloned().unwrap_or(Device::Absent { errno: libc::ENOENT })
    }

    fn cpuid(&self) -> Vec<CpuidLeaves> {
        self.answers.cpuid.clone()
    }

    fn identity(&self) -> Identity {
        self.answers.identity.clone()
    }

    fn has_env(&self, name: &str) -> bool {
        self.answers.env.iter().any(|set| set == name)
    }

    fn kvm(&self) -> KvmAnswers {
        self.answers.kvm.clone().unwrap_or_else(|| KvmAnswers {
            api_version: -libc::ENOENT,
            capabilities: BTreeMap::new(),
            guest_mode: GuestMode::CallFailed { call: "open /dev/kvm".to_owned(), errno: libc::ENOENT },
        })
    }
}

/// `/proc/cpuinfo` in the tree at `root`.
pub(super) fn in_tree(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}
