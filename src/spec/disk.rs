//! One disk as it was typed: `path=/data/disk.img,readonly=true,format=qcow2`, or the same keys in YAML; and what it means.

mod check;

use std::path::PathBuf;

use super::error::Problem;
use super::options;

pub(super) use self::check::disk_plan;

/// The keys a disk has, for messages and for spelling hints.
pub(super) const KEYS: [&str; 14] = [
    "path",
    "partitions",
    "readonly",
    "format",
    "backing",
    "direct",
    "cache",
    "io",
    "serial",
    "queues",
    "bytes-per-second",
    "bytes-burst",
    "ops-per-second",
    "ops-burst",
];

/// The keys a partition has.
pub(super) const PARTITION_KEYS: [&str; 3] = ["label", "path", "readonly"];

/// What was said about one disk. What was not said is `None`, empty or false.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image file or block device; empty for a composite disk.
    pub path: PathBuf,
    /// The partitions of a composite disk.
    pub partitions: Vec<PartitionConfig>,
    /// The guest may only read it.
    pub readonly: bool,
    /// The page cache is left out.
    pub direct: bool,
    /// `raw` or `qcow2`.
    pub format: Option<String>,
    /// `allow` or `deny`: whether the backing file that an image names is opened.
    pub backing: Option<String>,
    /// `writeback` or `writethrough`.
    pub cache: Option<String>,
    /// `auto`, `uring` or `threads`.
    pub io: Option<String>,
    /// What the guest sees as the disk's serial number.
    pub serial: Option<String>,
    /// Request queues: a number, or `auto`.
    pub queues: Option<String>,
    /// A size: bytes read and written in a second.
    pub bytes_per_second: Option<String>,
    /// A size: bytes beyond that at once.
    pub bytes_burst: Option<String>,
    /// Requests in a second.
    pub ops_per_second: Option<String>,
    /// Requests beyond that at once.
    pub ops_burst: Option<String>,
}

/// What was said about one partition of a composite disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionConfig {
    /// Its name in the partition table.
    pub label: String,
    /// The raw image.
    pub path: PathBuf,
    /// The guest may only read it.
    pub readonly: bool,
}

impl DiskConfig {
    /// Reads `--disk`'s value. Its first part may be a path alone.
    ///
    /// # Errors
    /// When a key is unknown, repeated or has no value, or neither a path nor a partition is there.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let refuse = |reason: String| Problem::Disk { text: text.to_owned(), reason };
        let mut disk = Self::default();
        // A disk has many partitions, and of everything else one.
        let (partitions, others): (Vec<_>, Vec<_>) =
            text.split(',').partition(|part| part.starts_with("partition="));
        for partition in partitions {
            disk.set("partition", partition.trim_start_matches("partition=")).map_err(refuse)?;
        }
        if others.is_empty() {
            return Ok(disk);
        }
        for (key, value) in options::pairs(&others.join(","), "path").map_err(refuse)? {
            disk.set(key, value).map_err(refuse)?;
        }
        if disk.path.as_os_str().is_empty() && disk.partitions.is_empty() {
            return Err(refuse("it has no path".to_owned()));
        }
        Ok(disk)
    }

    /// Sets one key; the error says what is wrong with it.
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let flag = || value.parse().map_err(|_| format!("`{key}` is true or false, not `{value}`"));
        let text = || Some(value.to_owned());
        match key {
            "path" => self.path = value.into(),
            "partition" => self.partitions.push(PartitionConfig::parse(value)?),
            "readonly" => self.readonly = flag()?,
            "direct" => self.direct = flag()?,
            "format" => self.format = text(),
            "backing" => self.backing = text(),
            "cache" => self.cache = text(),
            "io" => self.io = text(),
            "serial" => self.serial = text(),
            "queues" => self.queues = text(),
            "bytes-per-second" => self.bytes_per_second = text(),
            "bytes-burst" => self.bytes_burst = text(),
            "ops-per-second" => self.ops_per_second = text(),
            "ops-burst" => self.ops_burst = text(),
            "partitions" => {
                return Err("a partition is written `partition=LABEL:PATH` here, once for each".into());
            }
            _ => return Err(super::yaml::unknown_key(key, &KEYS)),
        }
        Ok(())
    }
}

impl PartitionConfig {
    /// Reads `LABEL:PATH` or `LABEL:PATH:ro`.
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("the partition `{text}` is not LABEL:PATH or LABEL:PATH:ro");
        let (label, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (path, readonly) = match rest.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (rest, false),
        };
        if label.is_empty() || path.is_empty() {
            return Err(wrong());
        }
        Ok(Self { label: label.to_owned(), path: path.into(), readonly })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_path_is_a_writable_disk() {
        let disk = DiskConfig::parse("/data/a.img").expect("parses");
        assert_eq!(disk, DiskConfig { path: "/data/a.img".into(), ..DiskConfig::default() });
    }

    #[test]
    fn a_bare_path_may_be_followed_by_keys() {
        let disk = DiskConfig::parse("/a,readonly=true").expect("parses");
        assert_eq!(disk, DiskConfig { path: "/a".into(), readonly: true, ..DiskConfig::default() });
    }

    #[test]
    fn every_key_is_read() {
        let text = "readonly=true,path=/a,format=raw,backing=deny,direct=true,cache=writethrough,io=threads,serial=s,\
                    queues=2,bytes-per-second=1M,bytes-burst=2M,ops-per-second=3,ops-burst=4";
        let disk = DiskConfig::parse(text).expect("parses");
        let some = |text: &str| Some(text.to_owned());
        let expected = DiskConfig {
            path: "/a".into(),
            partitions: Vec::new(),
            readonly: true,
            direct: true,
            format: some("raw"),
            backing: some("deny"),
            cache: some("writethrough"),
            io: some("threads"),
            serial: some("s"),
            queues: some("2"),
            bytes_per_second: some("1M"),
            bytes_burst: some("2M"),
            ops_per_second: some("3"),
            ops_burst: some("4"),
        };
        assert_eq!(disk, expected);
    }

    #[test]
    fn partitions_are_named_one_after_the_other() {
        let disk = DiskConfig::parse("partition=boot:/b:with:colon.img:ro,partition=data:/d,serial=x")
            .expect("parses");
        let partition = |label: &str, path: &str, readonly| PartitionConfig {
            label: label.to_owned(),
            path: path.into(),
            readonly,
        };
        let expected = [partition("boot", "/b:with:colon.img", true), partition("data", "/d", false)];
        assert_eq!(disk.partitions, expected);
    }

    #[test]
    fn what_cannot_be_read_says_which_part() {
        for (text, part) in [
            ("", "no path"),
            ("/a,readonly", "`readonly` has no value"),
            ("path=", "no path"),
            ("path=/a,readonly", "`readonly` has no value"),
            ("path=/a,readonly=yes", "true or false"),
            ("path=/a,direct=1", "`direct` is true or false"),
            ("path=/a,path=/b", "twice"),
            ("path=/a,read-only=true", "did you mean `readonly`"),
            ("readonly=true", "no path"),
            ("partition=/a", "is not LABEL:PATH"),
            ("partition=:/a", "is not LABEL:PATH"),
            ("partition=a::ro", "is not LABEL:PATH"),
            ("partitions=a:/a", "once for each"),
        ] {
            let message = DiskConfig::parse(text).expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
