//! The entropy device as it was typed: `bytes-per-second=1M`.

use super::error::Problem;
use super::options::pairs;
use super::plan::RngPlan;
use super::size::parse_size;

const KEYS: [&str; 1] = ["bytes-per-second"];

/// Reads `--rng`'s value.
///
/// # Errors
/// When a key is unknown or repeated, or the rate is no size of at least a byte.
pub(super) fn parse(text: &str) -> Result<RngPlan, Problem> {
    let refuse = |reason: String| Problem::Device {
        text: text.to_owned(),
        what: "an entropy device",
        reason,
        example: "bytes-per-second=64K",
    };
    let mut plan = RngPlan::default();
    for (key, value) in pairs(text, "bytes-per-second").map_err(refuse)? {
        if key != "bytes-per-second" {
            return Err(refuse(super::yaml::unknown_key(key, &KEYS)));
        }
        let bytes = parse_size(value).filter(|bytes| *bytes > 0);
        plan.bytes_per_second =
            Some(bytes.ok_or_else(|| refuse(format!("`{key}` is a size from 1 byte up, not `{value}`")))?);
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_size() {
        for text in ["bytes-per-second=64K", "64K", "65536"] {
            assert_eq!(parse(text).expect(text), RngPlan { bytes_per_second: Some(64 << 10) });
        }
        for (text, part) in [
            ("", "a size"),
            ("0", "from 1 byte up"),
            ("bytes-per-second=fast", "not `fast`"),
            ("bytes=1", "did you mean `bytes-per-second`"),
            ("1K,bytes-per-second=2K", "twice"),
        ] {
            let message = parse(text).expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
