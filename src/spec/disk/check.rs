//! What was typed about a disk becomes its plan.

use std::collections::HashSet;

use super::super::config::Given;
use super::super::error::{Problem, SpecError};
use super::super::files::check_disk;
use super::super::plan::{CacheMode, DiskFormat, DiskIo, DiskPlan, DiskSource, PartitionPlan, RateLimit};
use super::super::size::parse_size;
use super::DiskConfig;

/// VIRTIO_BLK_ID_BYTES (virtio 1.2 §5.2.6).
const MAX_SERIAL: usize = 20;
/// What udev keeps in a file name beside letters and digits (systemd's `udev_replace_chars`).
const SERIAL_SIGNS: &[u8] = b"#+-.:=@_";
/// As many as vCPUs: more queues than that wait for each other.
const MAX_QUEUES: u16 = 32;
/// Entries of the partition table, and UTF-16 units of a name in it.
const MAX_PARTITIONS: usize = 128;
const MAX_LABEL: usize = 36;

/// Checks everything that was said about a disk.
pub(in super::super) fn disk_plan(given: &Given<DiskConfig>) -> Result<DiskPlan, SpecError> {
    let disk = &given.value;
    let refuse = |reason: String| given.refuse(Problem::DiskValue { disk: name(disk), reason });
    let source = source(given, &refuse)?;
    let io = choose(
        disk.io.as_deref(),
        "io",
        &[("auto", DiskIo::Auto), ("uring", DiskIo::Uring), ("threads", DiskIo::Threads)],
    );
    let io = io.map_err(refuse)?.unwrap_or(DiskIo::Auto);
    if let (DiskIo::Uring, DiskSource::Image { format: Some(DiskFormat::Qcow2), .. }) = (io, &source) {
        return Err(refuse("io=uring is for raw images: leave it out, or convert the image".to_owned()));
    }
    let cache = [("writeback", CacheMode::Writeback), ("writethrough", CacheMode::Writethrough)];
    let cache = choose(disk.cache.as_deref(), "cache", &cache).map_err(refuse)?;
    Ok(DiskPlan {
        source,
        readonly: disk.readonly,
        direct: disk.direct,
        cache: cache.unwrap_or(CacheMode::Writeback),
        io,
        serial: disk.serial.as_deref().map(serial).transpose().map_err(refuse)?,
        queues: disk.queues.as_deref().map_or(Ok(None), queues).map_err(refuse)?,
        bytes: rate(["bytes-per-second", "bytes-burst"], &disk.bytes_per_second, &disk.bytes_burst)
            .map_err(refuse)?,
        ops: rate(["ops-per-second", "ops-burst"], &disk.ops_per_second, &disk.ops_burst).map_err(refuse)?,
    })
}

/// What follows `the disk` in a message: its path, its partitions, or nothing.
fn name(disk: &DiskConfig) -> String {
    if !disk.path.as_os_str().is_empty() {
        return format!(" {}", disk.path.display());
    }
    let labels: Vec<&str> = disk.partitions.iter().map(|partition| partition.label.as_str()).collect();
    if labels.is_empty() { String::new() } else { format!(" of the partitions {}", labels.join(", ")) }
}

fn source(given: &Given<DiskConfig>, refuse: &impl Fn(String) -> SpecError) -> Result<DiskSource, SpecError> {
    let disk = &given.value;
    let has_path = !disk.path.as_os_str().is_empty();
    let format = [("raw", DiskFormat::Raw), ("qcow2", DiskFormat::Qcow2)];
    let format = choose(disk.format.as_deref(), "format", &format).map_err(refuse)?;
    let backing = [("allow", true), ("deny", false)];
    let backing = choose(disk.backing.as_deref(), "backing", &backing).map_err(refuse)?;
    if backing.is_some() && (format == Some(DiskFormat::Raw) || !has_path) {
        return Err(refuse("`backing` is for qcow2 images: leave it out".to_owned()));
    }
    match (has_path, disk.partitions.is_empty()) {
        (false, true) => Err(refuse("it has neither a path nor partitions: give one of them".to_owned())),
        (true, false) => Err(refuse("it has a path and partitions: give one of them".to_owned())),
        (true, true) => {
            check_disk(given, &disk.path, disk.readonly)?;
            Ok(DiskSource::Image { path: disk.path.clone(), format, follow_backing: backing.unwrap_or(true) })
        }
        (false, false) if format == Some(DiskFormat::Qcow2) => {
            Err(refuse("partitions are raw images: leave out format, or convert them".to_owned()))
        }
        (false, false) => {
            let partitions = partitions(given, refuse)?;
            Ok(DiskSource::Partitions { partitions, said_raw: format.is_some() })
        }
    }
}

fn partitions(
    given: &Given<DiskConfig>,
    refuse: &impl Fn(String) -> SpecError,
) -> Result<Vec<PartitionPlan>, SpecError> {
    let disk = &given.value;
    if disk.partitions.len() > MAX_PARTITIONS {
        let count = disk.partitions.len();
        return Err(refuse(format!("{count} partitions are too many: a partition table has room for 128")));
    }
    let mut seen = HashSet::new();
    let mut plans = Vec::with_capacity(disk.partitions.len());
    for partition in &disk.partitions {
        let label = &partition.label;
        if label.is_empty() || label.encode_utf16().count() > MAX_LABEL || label.chars().any(char::is_control)
        {
            return Err(refuse(format!(
                "the label {label:?} does not have 1 to 36 characters: choose another"
            )));
        }
        if !seen.insert(label) {
            return Err(refuse(format!("the label {label:?} is there twice: choose another")));
        }
        let readonly = disk.readonly || partition.readonly;
        check_disk(given, &partition.path, readonly)?;
        plans.push(PartitionPlan { label: label.clone(), path: partition.path.clone(), readonly });
    }
    Ok(plans)
}

/// Reads a value that is one of a few words.
fn choose<T: Copy>(text: Option<&str>, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, String> {
    let Some(text) = text else { return Ok(None) };
    match choices.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            Err(format!("`{key}` is {}, not `{text}`", words.join(" or ")))
        }
    }
}

/// A serial number that Linux shows as it is, in `/dev/disk/by-id/virtio-SERIAL` too: udev makes a directory of what stands
/// before a slash, and writes `_` for characters it does not like.
fn serial(text: &str) -> Result<String, String> {
    let fits = (1..=MAX_SERIAL).contains(&text.len());
    if !fits || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || SERIAL_SIGNS.contains(&byte)) {
        return Err(format!(
            "`serial` is 1 to 20 letters, digits and signs of `#+-.:=@_`, which udev keeps in /dev/disk/by-id, and `{}` is not",
            text.escape_debug()
        ));
    }
    Ok(text.to_owned())
}

fn queues(text: &str) -> Result<Option<u16>, String> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse() {
        Ok(count @ 1..=MAX_QUEUES) => Ok(Some(count)),
        _ => Err(format!("`queues` is 1 to 32, or auto, not `{text}`")),
    }
}

/// Reads a limit and its burst. Bytes are a size, requests a plain number; both are sizes that say 0 to nobody.
fn rate(
    [key, burst_key]: [&str; 2],
    per_second: &Option<String>,
    burst: &Option<String>,
) -> Result<Option<RateLimit>, String> {
    let number = |key: &str, text: &String| {
        parse_size(text)
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("`{key}` is a number such as 1000 or 10M, not `{text}`"))
    };
    match (per_second, burst) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(format!("`{burst_key}` comes beside `{key}`: give both")),
        (Some(text), burst) => {
            let per_second = number(key, text)?;
            let burst = burst.as_ref().map_or(Ok(0), |text| number(burst_key, text))?;
            Ok(Some(RateLimit { per_second, burst }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::disk::PartitionConfig;

    fn plan(disk: DiskConfig) -> Result<DiskPlan, SpecError> {
        disk_plan(&Given::by_flag("--disk", disk))
    }

    fn image() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(4096).expect("size");
        file
    }

    fn parsed(file: &tempfile::NamedTempFile, more: &str) -> Result<DiskPlan, SpecError> {
        plan(DiskConfig::parse(&format!("{}{more}", file.path().display())).expect("parses"))
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let file = image();
        let plan = parsed(&file, "").expect("plan");
        assert_eq!(plan, DiskPlan::image(file.path(), false));
        assert_eq!((plan.cache, plan.io, plan.queues), (CacheMode::Writeback, DiskIo::Auto, None));
        let DiskSource::Image { format, follow_backing, .. } = plan.source else { panic!("an image") };
        assert_eq!((format, follow_backing), (None, true));
    }

    #[test]
    fn what_is_said_is_planned() {
        let file = image();
        let more = ",format=qcow2,backing=deny,direct=true,cache=writethrough,io=threads,serial=root-1,queues=3,\
                    bytes-per-second=10M,ops-per-second=500,ops-burst=100";
        let plan = parsed(&file, more).expect("plan");
        assert!(matches!(
            plan.source,
            DiskSource::Image { format: Some(DiskFormat::Qcow2), follow_backing: false, .. }
        ));
        assert_eq!((plan.direct, plan.cache, plan.io), (true, CacheMode::Writethrough, DiskIo::Threads));
        assert_eq!((plan.serial.as_deref(), plan.queues), (Some("root-1"), Some(3)));
        assert_eq!(plan.bytes, Some(RateLimit { per_second: 10 << 20, burst: 0 }));
        assert_eq!(plan.ops, Some(RateLimit { per_second: 500, burst: 100 }));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_mend() {
        let file = image();
        for (more, part) in [
            (",format=vmdk", "`format` is raw or qcow2, not `vmdk`"),
            (",backing=maybe", "`backing` is allow or deny"),
            (",format=raw,backing=deny", "`backing` is for qcow2 images"),
            (",cache=none", "`cache` is writeback or writethrough, not `none`"),
            (",io=aio", "`io` is auto or uring or threads"),
            (",format=qcow2,io=uring", "io=uring is for raw images"),
            (",serial=", "1 to 20"),
            (",serial=a b", "1 to 20"),
            (",serial=123456789012345678901", "1 to 20"),
            (",serial=a/b", "which udev keeps in /dev/disk/by-id, and `a/b` is not"),
            (",serial=a\\b", "1 to 20"),
            (",serial=a*", "1 to 20"),
            (",queues=0", "`queues` is 1 to 32, or auto"),
            (",queues=33", "`queues` is 1 to 32, or auto"),
            (",bytes-per-second=0", "`bytes-per-second` is a number"),
            (",ops-per-second=fast", "`ops-per-second` is a number"),
            (",ops-burst=5", "`ops-burst` comes beside `ops-per-second`"),
            (",bytes-per-second=1M,bytes-burst=x", "`bytes-burst` is a number"),
            (",partition=a:/b", "a path and partitions"),
        ] {
            let text = parsed(&file, more).expect_err(more).to_string();
            assert!(text.starts_with("--disk: the disk"), "{text}");
            assert!(text.contains(part), "{more}: {text}");
        }
    }

    #[test]
    fn partitions_are_checked_each() {
        let file = image();
        let part = |label: &str| PartitionConfig {
            label: label.to_owned(),
            path: file.path().to_owned(),
            readonly: true,
        };
        let disk = |partitions: Vec<PartitionConfig>| DiskConfig { partitions, ..DiskConfig::default() };
        let planned = plan(disk(vec![part("a"), part("b")])).expect("plan");
        let DiskSource::Partitions { partitions: parts, said_raw } = &planned.source else {
            panic!("partitions")
        };
        assert!(!said_raw);
        let raw = DiskConfig { format: Some("raw".into()), ..disk(vec![part("a")]) };
        assert!(matches!(plan(raw).expect("plan").source, DiskSource::Partitions { said_raw: true, .. }));
        assert_eq!((parts.len(), parts[1].label.as_str(), parts[1].readonly), (2, "b", true));
        let missing = PartitionConfig { path: "/gone".into(), ..part("c") };
        for (config, text) in [
            (disk(vec![]), "neither a path nor partitions"),
            (disk(vec![part("a"), part("a")]), "is there twice"),
            (disk(vec![part("")]), "1 to 36 characters"),
            (disk(vec![part(&"x".repeat(37))]), "1 to 36 characters"),
            (disk(vec![part("a"); 129]), "room for 128"),
            (disk(vec![missing]), "the disk /gone cannot be opened"),
            (DiskConfig { format: Some("qcow2".into()), ..disk(vec![part("a")]) }, "partitions are raw"),
        ] {
            let message = plan(config).expect_err(text).to_string();
            assert!(message.contains(text), "{text}: {message}");
        }
    }
}
