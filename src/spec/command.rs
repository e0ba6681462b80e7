//! The workload: a command that the guest's init is handed on the kernel command line.
//!
//! Linux gives init every word after ` -- ` as an argument (Documentation/admin-guide/kernel-parameters.rst). It keeps
//! spaces only within double quotes, and knows no way to write a double quote itself.

use super::error::Problem;

/// The most words a kernel hands to init (MAX_INIT_ARGS), the program itself among them.
const MAX_WORDS: usize = 32;

/// The command as the end of a kernel command line.
pub(super) fn to_cmdline(command: &[String]) -> Result<String, Problem> {
    if command.len() > MAX_WORDS {
        return Err(Problem::CommandTooLong { words: command.len() });
    }
    let words = command.iter().map(|word| quote(word)).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("-- {}", words.join(" ")))
}

fn quote(word: &str) -> Result<String, Problem> {
    // A second `--` would end the command: the kernel keeps nothing after it.
    if word == "--" || word.contains('"') || word.contains(|c: char| c.is_control()) || word.is_empty() {
        return Err(Problem::CommandWord { word: word.to_owned() });
    }
    // The kernel takes the byte 0xa0, a part of many UTF-8 characters, for a space.
    let has_space = word.bytes().any(|byte| matches!(byte, b' ' | 0xa0));
    Ok(if has_space { format!("\"{word}\"") } else { word.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmdline(words: &[&str]) -> Result<String, Problem> {
        to_cmdline(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words_keep_their_spaces() {
        assert_eq!(cmdline(&["/bin/sh", "-c", "echo a; nproc"]).unwrap(), "-- /bin/sh -c \"echo a; nproc\"");
        assert_eq!(cmdline(&["echo", "voilà", "é"]).unwrap(), "-- echo \"voilà\" é");
    }

    #[test]
    fn what_a_kernel_cannot_hand_over_is_refused() {
        for word in ["say \"hi\"", "two\nlines", "tab\there", "", "--"] {
            assert!(matches!(cmdline(&["sh", word]), Err(Problem::CommandWord { .. })), "{word:?}");
        }
        assert!(matches!(cmdline(&["x"; 33]), Err(Problem::CommandTooLong { words: 33 })));
    }
}
