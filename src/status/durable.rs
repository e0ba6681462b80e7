//! What outlives the process: the status file, and the message Kubernetes shows for an ended container.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::model::EndReason;
use super::snapshot::{End, State};

/// Where the kubelet looks for a container's last words, unless the pod says otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Names another such file, for pods that set `terminationMessagePath`.
const TERMINATION_LOG_VARIABLE: &str = "NESTLING_TERMINATION_LOG";
/// The kubelet keeps this many bytes less one.
const TERMINATION_LOG_BYTES: usize = 4096;
/// Longest text of one value in there.
const TEXT_BYTES: usize = 1000;

/// Replaces a file as a whole: a reader sees the old content or the new, never a part.
///
/// # Errors
/// When the directory cannot be written; then nothing is left beside the old file.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// The final status in the few bytes that Kubernetes keeps.
#[derive(Debug, Serialize)]
struct LastWords<'a> {
    state: State,
    reason: &'a EndReason,
    exit_code: u8,
    exit_name: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    console_tail: &'a [String],
}

/// Leaves the end's reason where Kubernetes reads it, if there is such a file and it can be written. Nobody can be
/// told about a failure here, so there is no error.
pub fn leave_last_words(state: State, end: &End) {
    let path =
        std::env::var_os(TERMINATION_LOG_VARIABLE).map_or_else(|| TERMINATION_LOG.into(), PathBuf::from);
    if let Ok(mut file) =
        OpenOptions::new().write(true).truncate(true).custom_flags(libc::O_NONBLOCK).open(path)
    {
        let _ = file.write_all(last_words(state, end).as_bytes());
    }
}

/// As many of the console's last lines as fit, and the reason always.
fn last_words(state: State, end: &End) -> String {
    let message = cut(&end.message);
    let reason = shortened(&end.reason);
    for dropped in 0..=end.console_tail.len() {
        let console_tail = &end.console_tail[dropped..];
        let (exit_code, exit_name) = (end.exit_code, end.exit_name.as_str());
        let words = LastWords { state, reason: &reason, exit_code, exit_name, message, console_tail };
        match serde_json::to_string(&words) {
            Ok(json) if json.len() < TERMINATION_LOG_BYTES => return json,
            _ => {}
        }
    }
    format!(r#"{{"state":"{}","exit_code":{}}}"#, state.name(), end.exit_code)
}

/// The beginning of a text, whole characters only.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The same reason with its text cut to what fits.
fn shortened(reason: &EndReason) -> EndReason {
    let mut reason = reason.clone();
    let text = match &mut reason {
        EndReason::GuestPanic { message: Some(text) }
        | EndReason::KvmError { detail: text }
        | EndReason::Stopped { by: text }
        | EndReason::Killed { detail: text }
        | EndReason::PreflightFailed { detail: text }
        | EndReason::BadInput { detail: text }
        | EndReason::Internal { detail: text } => text,
        EndReason::PowerOff
        | EndReason::WorkloadExited { .. }
        | EndReason::WorkloadKilled { .. }
        | EndReason::Reset
        | EndReason::TripleFault
        | EndReason::Watchdog { .. }
        | EndReason::GuestPanic { message: None } => return reason,
    };
    text.truncate(cut(text).len());
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(message: String, console_tail: Vec<String>) -> End {
        let reason = EndReason::GuestPanic { message: Some(message.clone()) };
        End {
            reason,
            exit_code: 203,
            exit_name: "guest-panic".into(),
            message,
            last_exit: None,
            console_tail,
        }
    }

    #[test]
    fn a_replaced_file_leaves_no_temporary_one() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("status.json");
        replace(&path, b"one").expect("first");
        replace(&path, b"two").expect("second");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_replace_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("status.json");
        fs::create_dir(&path).expect("in its place");
        assert!(replace(&path, b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn last_words_fit_and_keep_the_newest_lines() {
        let tail: Vec<String> = (0..200).map(|line| format!("{line}: {}", "\u{1}é".repeat(40))).collect();
        let words = last_words(State::Failed, &end("Attempted to kill init!".into(), tail.clone()));
        assert!(words.len() < TERMINATION_LOG_BYTES);
        let json: serde_json::Value = serde_json::from_str(&words).expect("JSON");
        assert_eq!(json["exit_code"], 203);
        let kept = json["console_tail"].as_array().expect("tail");
        assert_eq!(kept.last().and_then(|line| line.as_str()), tail.last().map(String::as_str));
    }

    #[test]
    fn even_a_hostile_message_fits() {
        for text in ["\u{1}", "\"", "é", "x"] {
            let words = last_words(State::Failed, &end(text.repeat(100_000), Vec::new()));
            assert!(words.len() < TERMINATION_LOG_BYTES);
            serde_json::from_str::<serde_json::Value>(&words).expect("JSON");
        }
    }
}
