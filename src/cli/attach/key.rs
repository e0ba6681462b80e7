//! The key that detaches.

/// One control key, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DetachKey(Option<u8>);

impl DetachKey {
    pub(super) const NONE: Self = Self(None);

    /// Reads `ctrl-]`, `^]` or `none`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        if lower == "none" {
            return Ok(Self::NONE);
        }
        let key = lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^'));
        match key.map(str::as_bytes) {
            // A control key sends its letter without the upper three bits.
            Some(&[letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')]) => Ok(Self(Some(letter & 0x1f))),
            _ => Err("write ctrl- and a letter or one of @ [ \\ ] ^ _, as in ctrl-], or none".to_owned()),
        }
    }

    /// What is typed before the key, and whether it is there.
    pub(super) fn split(self, typed: &[u8]) -> (&[u8], bool) {
        let at = self.0.and_then(|key| typed.iter().position(|&byte| byte == key));
        match at {
            Some(at) => (typed.get(..at).unwrap_or_default(), true),
            None => (typed, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_people_write_them() {
        for (text, byte) in [("ctrl-]", 0x1d), ("Ctrl-Q", 0x11), ("^q", 0x11), ("^@", 0), ("ctrl-_", 0x1f)] {
            assert_eq!(DetachKey::parse(text), Ok(DetachKey(Some(byte))), "{text}");
        }
        assert_eq!(DetachKey::parse("none"), Ok(DetachKey::NONE));
        for text in ["", "q", "ctrl-", "ctrl-qq", "^1", "ctrl-é", "alt-x"] {
            assert!(DetachKey::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_guest_gets_what_comes_before_the_key() {
        let key = DetachKey::parse("ctrl-]").unwrap();
        assert_eq!(key.split(b"ls\r"), (b"ls\r".as_slice(), false));
        assert_eq!(key.split(b"ls\x1d\r"), (b"ls".as_slice(), true));
        assert_eq!(key.split(b"\x1d"), (b"".as_slice(), true));
        assert_eq!(DetachKey::NONE.split(b"\x1d"), (b"\x1d".as_slice(), false));
    }
}
