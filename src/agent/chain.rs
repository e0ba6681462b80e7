//! Errors as one sentence.

use std::error::Error;

/// The error's text and those of its sources, joined by `: `. A source that its error has already quoted is left out.
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
    text
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
}
