//! One disk as it was typed: `path=/data/disk.img,readonly=true,format=raw`, or the same keys in YAML.

use std::path::PathBuf;

use super::error::Problem;
use super::options;

/// The keys a disk has, for messages and for spelling hints.
pub(super) const KEYS: [&str; 3] = ["path", "readonly", "format"];

/// What was said about one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image file or block device.
    pub path: PathBuf,
    /// The guest may only read it.
    pub readonly: bool,
    /// `raw`, `qcow2` (later), or whatever was typed.
    pub format: Option<String>,
}

impl DiskConfig {
    /// Reads `--disk`'s value. Its first part may be a path alone.
    ///
    /// # Errors
    /// When a key is unknown, repeated or has no value, or the path is missing.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let refuse = |reason: String| Problem::Disk { text: text.to_owned(), reason };
        let mut disk = Self::default();
        for (key, value) in options::pairs(text, "path").map_err(refuse)? {
            disk.set(key, value).map_err(refuse)?;
        }
        if disk.path.as_os_str().is_empty() {
            return Err(refuse("it has no path".to_owned()));
        }
        Ok(disk)
    }

    /// Sets one key; the error says what is wrong with it.
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "path" => self.path = value.into(),
            "readonly" => {
                self.readonly =
                    value.parse().map_err(|_| format!("`readonly` is true or false, not `{value}`"))?;
            }
            "format" => self.format = Some(value.to_owned()),
            _ => return Err(super::yaml::unknown_key(key, &KEYS)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_path_is_a_writable_raw_disk() {
        let disk = DiskConfig::parse("/data/a.img").expect("parses");
        assert_eq!(disk, DiskConfig { path: "/data/a.img".into(), ..DiskConfig::default() });
    }

    #[test]
    fn a_bare_path_may_be_followed_by_keys() {
        let disk = DiskConfig::parse("/a,readonly=true").expect("parses");
        assert_eq!(disk, DiskConfig { path: "/a".into(), readonly: true, format: None });
    }

    #[test]
    fn every_key_is_read() {
        let disk = DiskConfig::parse("readonly=true,path=/a,format=raw").expect("parses");
        assert_eq!(disk, DiskConfig { path: "/a".into(), readonly: true, format: Some("raw".into()) });
    }

    #[test]
    fn what_cannot_be_read_says_which_part() {
        for (text, part) in [
            ("", "no path"),
            ("/a,readonly", "`readonly` has no value"),
            ("path=", "no path"),
            ("path=/a,readonly", "`readonly` has no value"),
            ("path=/a,readonly=yes", "true or false"),
            ("path=/a,path=/b", "twice"),
            ("path=/a,read-only=true", "did you mean `readonly`"),
            ("readonly=true", "no path"),
        ] {
            let message = DiskConfig::parse(text).expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
