//! Bytes within JSON: names that are nearly always text, and binary data.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An argument, a variable, a path: bytes as Linux has them. In JSON a string, or an array of numbers when they are not
/// UTF-8. No zero byte, for none of the three can hold one.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteString(Vec<u8>);

impl ByteString {
    /// What it is in system calls.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for ByteString {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<&OsStr> for ByteString {
    fn from(name: &OsStr) -> Self {
        Self(name.as_bytes().to_vec())
    }
}

impl From<OsString> for ByteString {
    fn from(name: OsString) -> Self {
        Self(name.into_vec())
    }
}

impl fmt::Display for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.as_os_str().display().fmt(f)
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.as_os_str().fmt(f)
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_seq(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, or an array of bytes")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
                Ok(text.as_bytes().to_vec())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<u8>, A::Error> {
                // The length that a sequence claims is not believed.
                let mut bytes = Vec::new();
                while let Some(byte) = sequence.next_element()? {
                    bytes.push(byte);
                }
                Ok(bytes)
            }
        }
        let bytes = deserializer.deserialize_any(Text)?;
        if bytes.contains(&0) { Err(D::Error::custom("it holds a zero byte")) } else { Ok(Self(bytes)) }
    }
}

/// Binary data; in JSON a string of two hexadecimal digits a byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let text: String = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        match digits {
            Some(digits) if digits.len() % 2 == 0 => Ok(Self(
                digits
                    .chunks_exact(2)
                    .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
                    .collect(),
            )),
            _ => Err(D::Error::custom("it is not pairs of hexadecimal digits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_a_string_and_other_bytes_are_numbers() {
        let (text, other) = (ByteString::from("/tmp/é"), ByteString(vec![b'/', 0xff]));

        assert_eq!(serde_json::to_string(&text).unwrap(), "\"/tmp/é\"");
        assert_eq!(serde_json::to_string(&other).unwrap(), "[47,255]");
        assert_eq!(serde_json::from_str::<ByteString>("[47,255]").unwrap(), other);
    }

    #[test]
    fn what_no_system_call_takes_is_refused() {
        assert!(serde_json::from_str::<ByteString>("\"a\\u0000b\"").is_err());
        assert!(serde_json::from_str::<ByteString>("[47,256]").is_err());
        assert!(serde_json::from_str::<ByteString>("7").is_err());
    }

    #[test]
    fn hex_has_whole_bytes() {
        assert_eq!(serde_json::to_string(&Hex(vec![0, 0xa5])).unwrap(), "\"00a5\"");
        assert_eq!(serde_json::from_str::<Hex>("\"00A5\"").unwrap(), Hex(vec![0, 0xa5]));
        assert!(serde_json::from_str::<Hex>("\"0\"").is_err());
        assert!(serde_json::from_str::<Hex>("\"0g\"").is_err());
    }
}
