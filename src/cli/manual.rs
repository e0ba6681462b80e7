//! `nestling man` and `nestling completions`: the command line as manual pages and as a shell's completions, made from its
//! own description.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, output};
use crate::agent::exit::Exit;

/// Print a manual page, or write all of them
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nestling man disk convert | man -l -
  nestling man --dir /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// The command to explain, such as `disk convert`; nestling itself if none is named
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,
    /// Write a page for every command into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Print a script that lets a shell complete commands and flags
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(nestling completions bash)
  nestling completions fish > ~/.config/fish/completions/nestling.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Runs `nestling man`.
pub(super) fn man(args: &ManArgs) -> Exit {
    let done = match &args.dir {
        Some(dir) => write_pages(dir),
        None => page(&args.command).map(|page| output::print(&page)),
    };
    match done {
        Ok(()) => Exit::Success,
        Err(sentence) => {
            output::complain(&sentence);
            Exit::BadInput
        }
    }
}

/// Runs `nestling completions`.
pub(super) fn completions(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nestling", &mut script);
    // A reader that went away is no error.
    let _ = output::write_out(&script);
    Exit::Success
}

/// The page of a command, in roff.
fn page(words: &[String]) -> Result<String, String> {
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    let mut command = &whole;
    for word in words {
        command = command.find_subcommand(word).ok_or_else(|| no_command(command, word))?;
    }
    let mut page = Vec::new();
    let rendered = Man::new(command.clone()).render(&mut page);
    rendered.map_err(|error: io::Error| format!("the page cannot be made: {error}"))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn no_command(of: &Command, word: &str) -> String {
    let known: Vec<_> = of.get_subcommands().map(Command::get_name).collect();
    let of = of.get_display_name().unwrap_or(of.get_name()).replace('-', " ");
    match known[..] {
        [] => format!("{of} has no commands of its own: leave `{word}` out"),
        _ => format!("{of} has no command `{word}`: it has {}", known.join(", ")),
    }
}

fn write_pages(dir: &Path) -> Result<(), String> {
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| {
        format!(
            "the manual pages cannot be written to {}: {error}; name a directory that exists",
            dir.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn every_command_has_a_page_with_its_flags() {
        assert!(page(&[]).unwrap().contains("nestling\\-run(1)"));
        let convert = page(&words("disk convert")).unwrap();
        assert!(
            convert.contains("nestling\\-disk\\-convert") || convert.contains("nestling disk convert"),
            "{convert}"
        );
        assert!(convert.contains("\\-\\-force"), "{convert}");
    }

    #[test]
    fn a_page_that_does_not_exist_says_which_do() {
        let refused = page(&words("disk copy")).unwrap_err();
        assert_eq!(refused, "nestling disk has no command `copy`: it has create, info, convert, resize");
        assert_eq!(
            page(&words("stop it")).unwrap_err(),
            "nestling stop has no commands of its own: leave `it` out"
        );
    }

    #[test]
    fn all_pages_are_written_at_once() {
        let dir = tempfile::tempdir().unwrap();
        write_pages(dir.path()).unwrap();
        for name in ["nestling.1", "nestling-run.1", "nestling-disk-create.1"] {
            assert!(dir.path().join(name).is_file(), "{name}");
        }
        assert!(write_pages(&dir.path().join("missing")).unwrap_err().contains("/missing: "));
    }

    #[test]
    fn every_shell_s_script_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "nestling", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("preflight") && script.contains("convert"), "{shell}");
        }
    }
}
