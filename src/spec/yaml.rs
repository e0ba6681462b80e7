//! The spec file: YAML whose keys are the flags' names.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_saphyr::{Error as YamlError, MessageFormatter, Spanned, UserMessageFormatter};

use super::config::{Config, Given, Origin};
use super::disk::{self, DiskConfig, PartitionConfig};
use super::error::SpecError;
use super::files::in_words;
use super::net::{self, NetConfig};
use super::port::{self, PortConfig};
use super::share::{self, ShareConfig};
use super::vsock::{self, VsockConfig};

/// A spec is a page of text; a larger file is something else that was named by mistake.
const MAX_BYTES: u64 = 1 << 20;

/// The spec's keys, for spelling hints.
const KEYS: &[&str] = &[
    "kernel",
    "initrd",
    "cmdline",
    "cmdline-replace",
    "command",
    "cpus",
    "memory",
    "disk",
    "port",
    "share",
    "vsock",
    "net",
    "console",
    "agent",
    "watchdog",
    "balloon",
    "rng",
    "console-history",
    "socket",
    "status-file",
    "allow-backend",
    "log-format",
];

/// The file's shape. Every scalar is taken as text with its place and read later, as a flag's value is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Document {
    kernel: Option<Spanned<String>>,
    initrd: Option<Spanned<String>>,
    cmdline: Option<Spanned<String>>,
    cmdline_replace: Option<Spanned<String>>,
    command: Option<Spanned<Vec<String>>>,
    cpus: Option<Spanned<String>>,
    memory: Option<Spanned<String>>,
    #[serde(alias = "disks")]
    disk: Option<Vec<Spanned<DiskEntry>>>,
    #[serde(alias = "ports")]
    port: Option<Vec<Spanned<PortEntry>>>,
    #[serde(alias = "shares")]
    share: Option<Vec<Spanned<ShareConfig>>>,
    vsock: Option<Spanned<VsockConfig>>,
    net: Option<Vec<Spanned<NetConfig>>>,
    console: Option<Spanned<String>>,
    agent: Option<Spanned<String>>,
    watchdog: Option<Spanned<String>>,
    balloon: Option<Spanned<String>>,
    rng: Option<Spanned<String>>,
    console_history: Option<Spanned<String>>,
    socket: Option<Spanned<String>>,
    status_file: Option<Spanned<String>>,
    allow_backend: Option<Spanned<String>>,
    log_format: Option<Spanned<String>>,
}

/// One disk of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct DiskEntry {
    path: Option<String>,
    partitions: Option<Vec<PartitionEntry>>,
    readonly: bool,
    direct: bool,
    format: Option<String>,
    backing: Option<String>,
    cache: Option<String>,
    io: Option<String>,
    serial: Option<String>,
    queues: Option<String>,
    bytes_per_second: Option<String>,
    bytes_burst: Option<String>,
    ops_per_second: Option<String>,
    ops_burst: Option<String>,
}

/// One partition of a disk.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartitionEntry {
    label: String,
    path: String,
    #[serde(default)]
    readonly: bool,
}

/// One port of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortEntry {
    name: String,
    path: String,
}

/// Reads a spec file.
///
/// # Errors
/// When the file cannot be read, is not text, is not YAML, or has a key or a type that a spec does not have; the
/// text names line and column.
pub fn read(file: &Path) -> Result<Config, SpecError> {
    parse(&read_text(file)?, file)
}

/// Reads a spec's text; `file` is for messages.
///
/// # Errors
/// As for [`read`].
pub fn parse(text: &str, file: &Path) -> Result<Config, SpecError> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| refuse(file, &error))?;
    Ok(document.into_config(file))
}

fn read_text(file: &Path) -> Result<String, SpecError> {
    let unreadable = |reason: String| SpecError::Unreadable { file: file.to_owned(), reason };
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|open| open.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(in_words(&error)))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unreadable(format!("it is larger than {} KiB, so it is no spec", MAX_BYTES >> 10)));
    }
    String::from_utf8(bytes)
        .map_err(|_| unreadable("it is not UTF-8 text: a kernel is given with --kernel".to_owned()))
}

impl Document {
    fn into_config(self, file: &Path) -> Config {
        let file: Arc<Path> = file.into();
        let text = |value: Option<Spanned<String>>| value.map(|value| place(value, &file));
        let path = |value: Option<Spanned<String>>| {
            value
                .map(|value| place(value, &file))
                .map(|Given { value, origin }| Given { value: PathBuf::from(value), origin })
        };
        Config {
            kernel: path(self.kernel),
            initrd: path(self.initrd),
            cmdline: text(self.cmdline),
            cmdline_replace: text(self.cmdline_replace),
            command: self.command.map(|command| place(command, &file)),
            cpus: text(self.cpus),
            memory: text(self.memory),
            disk: self.disk.unwrap_or_default().into_iter().map(|disk| disk_config(disk, &file)).collect(),
            port: self.port.unwrap_or_default().into_iter().map(|port| port_config(port, &file)).collect(),
            share: self.share.unwrap_or_default().into_iter().map(|share| place(share, &file)).collect(),
            vsock: self.vsock.map(|vsock| place(vsock, &file)),
            net: self.net.unwrap_or_default().into_iter().map(|net| place(net, &file)).collect(),
            console: text(self.console),
            agent: text(self.agent),
            watchdog: text(self.watchdog),
            balloon: text(self.balloon),
            rng: text(self.rng),
            console_history: text(self.console_history),
            socket: path(self.socket),
            status_file: path(self.status_file),
            allow_backend: text(self.allow_backend),
            log_format: text(self.log_format),
        }
    }
}

fn disk_config(entry: Spanned<DiskEntry>, file: &Arc<Path>) -> Given<DiskConfig> {
    let Given { value: disk, origin } = place(entry, file);
    let partition =
        |PartitionEntry { label, path, readonly }| PartitionConfig { label, path: path.into(), readonly };
    let value = DiskConfig {
        path: disk.path.unwrap_or_default().into(),
        partitions: disk.partitions.unwrap_or_default().into_iter().map(partition).collect(),
        readonly: disk.readonly,
        direct: disk.direct,
        format: disk.format,
        backing: disk.backing,
        cache: disk.cache,
        io: disk.io,
        serial: disk.serial,
        queues: disk.queues,
        bytes_per_second: disk.bytes_per_second,
        bytes_burst: disk.bytes_burst,
        ops_per_second: disk.ops_per_second,
        ops_burst: disk.ops_burst,
    };
    Given { value, origin }
}

fn port_config(entry: Spanned<PortEntry>, file: &Arc<Path>) -> Given<PortConfig> {
    let Given { value: PortEntry { name, path }, origin } = place(entry, file);
    Given { value: PortConfig { name, path: path.into() }, origin }
}

fn place<T>(spanned: Spanned<T>, file: &Arc<Path>) -> Given<T> {
    let Spanned { value, referenced, .. } = spanned;
    let origin =
        Origin::Spec { file: Arc::clone(file), line: referenced.line(), column: referenced.column() };
    Given { value, origin }
}

/// The YAML reader's error, in our words where we have better ones.
fn refuse(file: &Path, error: &YamlError) -> SpecError {
    let (line, column) = error.location().map_or((1, 1), |place| (place.line(), place.column()));
    let message = match error.without_snippet() {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let has = |key| expected.contains(&key);
            let keys: &[&str] = match () {
                () if has("kernel") => KEYS,
                () if has("label") => &disk::PARTITION_KEYS,
                () if has("mac") => &net::KEYS,
                () if has("name") => &port::KEYS,
                () if has("cid") => &vsock::KEYS,
                () if has("tag") => &share::KEYS,
                () => &disk::KEYS,
            };
            unknown_key(field, keys)
        }
        other => plain(&UserMessageFormatter.format_message(other)),
    };
    SpecError::Yaml { file: file.to_owned(), line, column, message }
}

/// The reader speaks of YAML's node types; a user thinks of values.
fn plain(message: &str) -> String {
    match message {
        "expected string scalar" => "a single value is expected here, not a list or a map".to_owned(),
        "expected mapping start" => "`key: value` lines are expected here".to_owned(),
        "expected sequence start" => "a list is expected here, each entry after a dash".to_owned(),
        "invalid boolean" => "true or false is expected here".to_owned(),
        other => match (other.strip_prefix("missing field "), other.strip_prefix("duplicate mapping key ")) {
            (Some(key), _) => format!("the key {key} is missing here"),
            (_, Some(rest)) => {
                format!("the key {} is there twice", rest.trim_end_matches(" is not allowed here"))
            }
            (None, None) => other.to_owned(),
        },
    }
}

/// Says that a key does not exist, and which one may have been meant.
pub(super) fn unknown_key(key: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(&key.to_lowercase(), candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, meant)) => format!("there is no key `{key}` (did you mean `{meant}`?)"),
        None => format!("there is no key `{key}`: the keys are {}", known.join(", ")),
    }
}

#[cfg(test)]
#[path = "yaml_tests.rs"]
mod tests;
