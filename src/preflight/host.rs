//! Everything a check may ask of the machine, as a trait, so that the same checks run on a recorded tree.

use std::collections::BTreeMap;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::guest_mode::GuestMode;

/// A machine to inspect. No method fails for a reason other than what the machine itself answers.
pub trait Host {
    /// The content of a file, at most a few MiB of it.
    ///
    /// # Errors
    /// What open(2) or read(2) answered.
    fn read(&self, path: &str) -> Result<Vec<u8>, Errno>;

    /// The sorted names in directory `dir` that start with `prefix`.
    ///
    /// # Errors
    /// What opening the directory answered.
    fn list(&self, dir: &str, prefix: &str) -> Result<Vec<String>, Errno>;

    /// What is at `path`, and whether this process may open it for reading and writing.
    fn device(&self, path: &str) -> Device;

    /// The CPUID leaves of each CPU this process may run on, in order; empty when CPUID is not to be had.
    fn cpuid(&self) -> Vec<CpuidLeaves>;

    /// Who this process is.
    fn identity(&self) -> Identity;

    /// Whether the environment variable is set. Values are never looked at.
    fn has_env(&self, name: &str) -> bool;

    /// Opens `/dev/kvm`, asks it what it can do and runs a test guest. Only called when the device opened before.
    fn kvm(&self) -> KvmAnswers;
}

/// What a path in `/dev` turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Device {
    /// stat(2) failed.
    Absent {
        /// Why, usually ENOENT.
        errno: i32,
    },
    /// It is there, but open(2) for reading and writing failed (or it is no device at all: `errno` 0).
    Refused {
        /// What is there.
        node: DeviceNode,
        /// Why it would not open.
        errno: i32,
    },
    /// It opened for reading and writing.
    Opened {
        /// What is there.
        node: DeviceNode,
    },
}

/// A file's type and permissions, see stat(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// What kind of file it is.
    pub kind: NodeKind,
    /// Device number, major part.
    pub major: u64,
    /// Device number, minor part.
    pub minor: u64,
    /// Permission bits without the file type; written as `"0660"`.
    #[serde(with = "octal")]
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Permission bits as people write them.
mod octal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde wants")]
    pub(super) fn serialize<S: Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{mode:04o}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let text = String::deserialize(deserializer)?;
        u32::from_str_radix(&text, 8).map_err(D::Error::custom)
    }
}

/// A file type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Directory.
    Directory,
    /// Regular file.
    File,
    /// Something else: a pipe, a socket.
    Other,
}

/// The effective ids of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// What `/dev/kvm` answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmAnswers {
    /// KVM_GET_API_VERSION, or a negative number when it failed.
    pub api_version: i32,
    /// KVM_CHECK_EXTENSION by the capability's name without `KVM_CAP_`; 0 means "no".
    pub capabilities: BTreeMap<String, i32>,
    /// How the test guest fared.
    pub guest_mode: GuestMode,
}

/// The CPUID leaves of one CPU: leaf number → eax, ebx, ecx, edx.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct CpuidLeaves(BTreeMap<u32, [u32; 4]>);

impl CpuidLeaves {
    /// The leaves preflight looks at: vendor, features, hypervisor, extended features, brand string.
    pub const WANTED: [u32; 7] = [0, 1, 0x4000_0000, 0x8000_0001, 0x8000_0002, 0x8000_0003, 0x8000_0004];

    /// Stores the registers of one leaf.
    pub fn insert(&mut self, leaf: u32, registers: [u32; 4]) {
        self.0.insert(leaf, registers);
    }

    /// `GenuineIntel` and the like (SDM Vol. 2, CPUID leaf 0: ebx, edx, ecx).
    #[must_use]
    pub fn vendor(&self) -> Option<String> {
        self.0.get(&0).map(|[_, b, c, d]| ascii(&[*b, *d, *c]))
    }

    /// VT-x: leaf 1, ecx bit 5.
    #[must_use]
    pub fn vmx(&self) -> bool {
        self.bit(1, 2, 5)
    }

    /// AMD-V: leaf 0x8000_0001, ecx bit 2.
    #[must_use]
    pub fn svm(&self) -> bool {
        self.bit(0x8000_0001, 2, 2)
    }

    /// A hypervisor says it is there: leaf 1, ecx bit 31.
    #[must_use]
    pub fn hypervisor(&self) -> bool {
        self.bit(1, 2, 31)
    }

    /// The hypervisor's twelve-character signature (leaf 0x4000_0000: ebx, ecx, edx), if one says it is there.
    #[must_use]
    pub fn hypervisor_signature(&self) -> Option<String> {
        let [_, b, c, d] = self.0.get(&0x4000_0000).filter(|_| self.hypervisor())?;
        Some(ascii(&[*b, *c, *d]))
    }

    fn bit(&self, leaf: u32, register: usize, bit: u32) -> bool {
        self.0.get(&leaf).and_then(|registers| registers.get(register)).is_some_and(|r| r >> bit & 1 == 1)
    }
}

/// The characters in a row of registers, without the NULs they are padded with.
fn ascii(registers: &[u32]) -> String {
    let bytes: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).filter(|b| *b != 0).collect();
    super::text::printable_bytes(&bytes)
}

/// `"0x1": "000306c3 00010800 fed8320b 178bfbff"`; what does not look like that is dropped.
impl From<BTreeMap<String, String>> for CpuidLeaves {
    fn from(text: BTreeMap<String, String>) -> Self {
        let parse = |(leaf, registers): (String, String)| {
            let leaf = u32::from_str_radix(leaf.strip_prefix("0x")?, 16).ok()?;
            let values: Option<Vec<u32>> =
                registers.split_whitespace().map(|r| u32::from_str_radix(r, 16).ok()).collect();
            Some((leaf, values?.try_into().ok()?))
        };
        Self(text.into_iter().filter_map(parse).collect())
    }
}

impl From<CpuidLeaves> for BTreeMap<String, String> {
    fn from(leaves: CpuidLeaves) -> Self {
        let print = |(leaf, [a, b, c, d]): (u32, [u32; 4])| {
            (format!("{leaf:#x}"), format!("{a:08x} {b:08x} {c:08x} {d:08x}"))
        };
        leaves.0.into_iter().map(print).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_survive_the_text_form() {
        let mut leaves = CpuidLeaves::default();
        leaves.insert(0, [0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
        leaves.insert(1, [0, 0, 1 << 5 | 1 << 31, 0]);
        leaves.insert(0x4000_0000, [0, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        let again = CpuidLeaves::from(BTreeMap::from(leaves.clone()));
        assert_eq!(again, leaves);
        assert_eq!(again.vendor().as_deref(), Some("GenuineIntel"));
        assert!(again.vmx() && again.hypervisor() && !again.svm());
        assert_eq!(again.hypervisor_signature().as_deref(), Some("KVMKVMKVM"));
    }

    #[test]
    fn nonsense_leaves_are_dropped() {
        let text = [("0x1", "1 2 3"), ("zzz", "0 0 0 0"), ("0x2", "0 0 0 nope")];
        let leaves = CpuidLeaves::from(
            text.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect::<BTreeMap<_, _>>(),
        );
        assert_eq!(leaves, CpuidLeaves::default());
    }
}
