//! Errors as one sentence.

use std::borrow::Cow;
use std::error::Error;

/// The error's text and those of its sources, joined by `: `. A source that its error has already quoted is left out, and so
/// are the kernel's error numbers: their words are there.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    without_numbers(&text)
}

/// Takes the `(os error 2)` out that Rust puts behind each of the kernel's errors.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| match part.split_once(')') {
        Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => text + rest,
        _ => text + " (os error " + part,
    })
}

/// The text with its control characters escaped (`\n`, `\u{1b}`), so that it stays one line and leaves a terminal alone.
/// Sentences quote what others have written: the names of backing files, paths.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn sources_follow_their_error_once() {
        let inner = Layer { text: "no such file", source: None };
        let quoted = Layer { text: "cannot open a: no such file", source: Some(Box::new(inner)) };
        let outer = Layer { text: "cannot start", source: Some(Box::new(quoted)) };
        assert_eq!(chain(&outer), "cannot start: cannot open a: no such file");
        let inner = Layer { text: "no such file", source: None };
        let mended = Layer { text: "cannot open a: no such file; make one", source: Some(Box::new(inner)) };
        assert_eq!(chain(&mended), "cannot open a: no such file; make one");
    }

    #[test]
    fn the_kernel_s_numbers_are_left_out() {
        let missing = std::io::Error::from_raw_os_error(2);
        assert_eq!(
            without_numbers(&format!("a: {missing}; b: {missing}")),
            "a: No such file or directory; b: No such file or directory"
        );
        assert_eq!(without_numbers("odd (os error x) and (os error 1"), "odd (os error x) and (os error 1");
    }

    #[test]
    fn a_line_has_no_control_characters() {
        assert!(matches!(one_line("the disk /data/ä b.img"), Cow::Borrowed(_)));
        assert_eq!(one_line("a\nb\u{1b}[31m\u{9b}c\t"), "a\\nb\\u{1b}[31m\\u{9b}c\\t");
    }
}
