//! What is said about the console beside its kind.

use super::config::Given;
use super::error::{Problem, SpecError};
use super::size::parse_size;

/// Bytes of history when nothing is said.
const DEFAULT_HISTORY: usize = 256 << 10;
/// The least and the most that may be asked for.
const HISTORY_BYTES: std::ops::RangeInclusive<u64> = 4 << 10..=64 << 20;

/// How much of the console's output is kept.
pub(super) fn history_bytes(given: Option<&Given<String>>) -> Result<usize, SpecError> {
    let Some(given) = given else { return Ok(DEFAULT_HISTORY) };
    let text = given.value.clone();
    match parse_size(&text) {
        None => Err(given.refuse(Problem::Size { text })),
        Some(bytes) if HISTORY_BYTES.contains(&bytes) => Ok(bytes as usize),
        Some(_) => Err(given.refuse(Problem::ConsoleHistory { text })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_has_a_default_and_bounds() {
        let bytes = |text: &str| history_bytes(Some(&Given::by_flag("--console-history", text.to_owned())));
        assert_eq!(history_bytes(None).unwrap(), 256 << 10);
        assert_eq!(bytes("1Mi").unwrap(), 1 << 20);
        for (text, words) in
            [("0", "out of range"), ("4095", "out of range"), ("1G", "out of range"), ("big", "not a size")]
        {
            let message = bytes(text).expect_err(text).to_string();
            assert!(message.starts_with("--console-history: ") && message.contains(words), "{message}");
        }
    }
}
