//! Sizes as people write them: `256M`, `1Gi`, `512MiB`, `268435456`.

/// Reads a size in bytes.
///
/// A number without a unit counts bytes. The units are powers of two however they are spelled: `K`, `Ki` and `KiB`
/// are 1,024 bytes, then `M`, `G`, `T` the same way. Letters may be small. `None` when the text is no such thing or
/// does not fit 64 bits.
///
/// ```
/// use nestling::spec::size::parse_size;
/// assert_eq!(parse_size("256M"), Some(256 << 20));
/// assert_eq!(parse_size("1Gi"), Some(1 << 30));
/// assert_eq!(parse_size("4096"), Some(4096));
/// assert_eq!(parse_size("1.5G"), None);
/// ```
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::parse_size;

    #[test]
    fn every_spelling_of_a_unit_is_a_power_of_two() {
        for (text, bytes) in [
            ("0", 0),
            ("1k", 1 << 10),
            ("1KiB", 1 << 10),
            ("512MiB", 512 << 20),
            ("512 MiB", 512 << 20),
            ("2g", 2 << 30),
            ("1Ti", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1M", "1.5G", "1MB", "1Mx", "0x10", "one", "99999999999999999999", "16777216T"]
        {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*") {
            let _ = parse_size(&text);
        }

        #[test]
        fn mebibytes_come_back(count in 0_u64..1 << 40) {
            prop_assert_eq!(parse_size(&format!("{count}Mi")), Some(count << 20));
        }
    }
}
