//! A flag's value with several keys: `path=/data/a.img,readonly=true`.

/// The keys and values of `text`, in order. A first part without `=` is the value of the key `first`.
///
/// # Errors
/// When a part has no value or a key is there twice; the text says which.
pub(super) fn pairs<'t>(text: &'t str, first: &'t str) -> Result<Vec<(&'t str, &'t str)>, String> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for (index, part) in text.split(',').enumerate() {
        let (key, value) = match part.split_once('=') {
            Some(pair) => pair,
            None if index == 0 => (first, part),
            None => return Err(format!("`{part}` has no value")),
        };
        if pairs.iter().any(|&(other, _)| other == key) {
            return Err(format!("`{key}` is there twice"));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_order_and_the_first_may_be_left_out() {
        assert_eq!(pairs("/a,readonly=true", "path").unwrap(), [("path", "/a"), ("readonly", "true")]);
        assert_eq!(pairs("b=1,a=x=y", "path").unwrap(), [("b", "1"), ("a", "x=y")]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert_eq!(pairs("a=1,b", "path").unwrap_err(), "`b` has no value");
        assert_eq!(pairs("/a,path=/b", "path").unwrap_err(), "`path` is there twice");
    }
}
