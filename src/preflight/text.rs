//! Turning bytes of unknown origin into one short printable line.

/// The longest piece of foreign text a finding repeats, in characters.
const LONGEST: usize = 160;

/// Replaces whatever could disturb a log or a terminal, and cuts what is too long.
pub(super) fn printable(text: &str) -> String {
    let trimmed = text.trim();
    let mut line: String =
        trimmed.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect();
    if trimmed.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

/// The same for raw file content.
pub(super) fn printable_bytes(bytes: &[u8]) -> String {
    // Four bytes are the longest UTF-8 character, so this prefix is enough for `LONGEST` and one more.
    let prefix = bytes.get(..4 * (LONGEST + 1)).unwrap_or(bytes);
    printable(&String::from_utf8_lossy(prefix))
}

/// `EACCES` for 13; the number itself when it has no name.
pub(super) fn errno_name(errno: i32) -> String {
    match nix::errno::Errno::from_raw(errno) {
        nix::errno::Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_long_lines_are_tamed() {
        assert_eq!(printable(" a\x1b[31mb\n"), "a?[31mb");
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), LONGEST + 1);
        assert_eq!(printable_bytes(b"\xff\xfe ok"), "\u{fffd}\u{fffd} ok");
    }

    #[test]
    fn error_numbers_have_names() {
        assert_eq!(errno_name(13), "EACCES");
        assert_eq!(errno_name(99_999), "errno 99999");
    }
}
