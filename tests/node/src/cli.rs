//! The command line, and what it means.

use std::env;
use std::error::Error as _;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{Doing, Error, Result};
use crate::report::Report;
use crate::run::{self, Collect, Placed, Request};
use crate::{runner, setup};

/// Run a static executable on a machine with VT-x, emulated by Bochs where this one has none.
#[derive(Debug, Parser)]
#[command(name = "nestling-node", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit code: the program's own; 128 + N if signal N ended it; 124 after --timeout; 125 if the node itself failed.
On failure the node's console and kernel log are kept under target/node/, and the end of them is shown.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make sure that everything is there: Bochs, firmware, kernel (once; kept in ${XDG_CACHE_HOME:-~/.cache}/nestling)
    Setup,
    /// Run a program in an emulated node
    Run(RunArgs),
    /// Be a cargo runner: run a test here where VT-x (or SVM) is, else in an emulated node
    ///
    /// CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="nestling-node runner" cargo test --test NAME
    ///
    /// The test is told nothing. It has the same path, arguments and working directory in the node, the variables
    /// NESTLING_*, RUST_BACKTRACE and RUST_LOG, and the files below the directory $NESTLING_ASSETS, at the same path.
    /// More files: $NESTLING_NODE_FILES, entries SRC or SRC=DST separated by colons or line feeds.
    Runner(RunnerArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// File or directory to put into the node, at DST or at the same path (repeatable)
    #[arg(long = "file", value_name = "SRC[=DST]")]
    files: Vec<String>,
    /// Environment variable of the program; without a value, this environment's (repeatable)
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File or directory to bring back when the program has ended (repeatable)
    #[arg(long, value_name = "PATH_IN_NODE=HOST_PATH")]
    collect: Vec<String>,
    #[command(flatten)]
    program: Program,
}

#[derive(Debug, Args)]
struct RunnerArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Where to run
    #[arg(long = "where", value_enum, default_value = "auto", env = "NESTLING_NODE_WHERE")]
    place: runner::Place,
    #[command(flatten)]
    program: Program,
}

/// What the node is like; the same for every command.
#[derive(Debug, Args)]
struct NodeArgs {
    /// Memory of the node in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, env = "NESTLING_NODE_MEMORY",
          value_parser = clap::value_parser!(u64).range(256..=3072))]
    memory: u64,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900, env = "NESTLING_NODE_TIMEOUT")]
    timeout: u64,
    /// Transparent huge pages in the node; `madvise` is what cloud nodes have
    #[arg(long, value_enum, default_value = "madvise", env = "NESTLING_NODE_THP")]
    thp: Thp,
    /// Let the node's kernel copy and clear memory with string instructions
    ///
    /// Saves a quarter of the emulator's time, but such an instruction counts once per byte: not for measurements.
    #[arg(long, env = "NESTLING_NODE_FAST_STRINGS", value_parser = FalseyValueParser::new())]
    fast_strings: bool,
    /// Kernel module to load besides kvm_intel and tun, or parameters for one of them (repeatable)
    #[arg(
        long = "module",
        value_name = "NAME[=PARAMETERS]",
        env = "NESTLING_NODE_MODULES",
        value_delimiter = ':'
    )]
    modules: Vec<String>,
    /// More for the node's kernel command line
    #[arg(long, value_name = "TEXT", default_value = "", env = "NESTLING_NODE_CMDLINE")]
    cmdline: String,
    /// Keep the node's console and kernel log in FILE, also on success
    #[arg(long, value_name = "FILE", env = "NESTLING_NODE_CONSOLE")]
    console: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Thp {
    Always,
    Madvise,
    Never,
}

#[derive(Debug, Args)]
struct Program {
    /// The static executable
    #[arg(value_name = "EXECUTABLE")]
    executable: PathBuf,
    /// Its arguments
    #[arg(value_name = "ARG", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Parses, does what was asked, and turns the result into the exit code.
pub(crate) fn main() -> ExitCode {
    let report = Report::new();
    match dispatch(Cli::parse().command, &report) {
        Ok(code) => code.into(),
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            report.say(&format!("error: {text}"));
            error.exit_code().into()
        }
    }
}

fn dispatch(command: Command, report: &Report) -> Result<u8> {
    match command {
        Command::Setup => {
            let parts = setup::ensure(report)?;
            report.step(&format!("ready: {}, Linux {}", parts.bochs.display(), parts.release));
            Ok(0)
        }
        Command::Run(args) => {
            let mut request = request(args.node, args.program)?;
            request.files = args.files.iter().map(|text| placed(text)).collect::<Result<_>>()?;
            request.env.extend(args.env.iter().filter_map(|text| variable(text)));
            request.collect = args.collect.iter().map(|text| collect(text)).collect::<Result<_>>()?;
            run::run(&request, report)
        }
        Command::Runner(args) => {
            let request = request(args.node, args.program)?;
            runner::run(request, args.place, report)
        }
    }
}

fn request(node: NodeArgs, program: Program) -> Result<Request> {
    let thp = node.thp.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
    let defaults = [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/")];
    Ok(Request {
        program: absolute(&program.executable)?,
        args: program.args,
        env: defaults.map(|(name, value)| (name.into(), value.into())).to_vec(),
        files: Vec::new(),
        collect: Vec::new(),
        modules: node.modules,
        memory_mib: node.memory,
        fast_strings: node.fast_strings,
        command_line: format!("transparent_hugepage={thp} {}", node.cmdline),
        timeout: Duration::from_secs(node.timeout),
        console: node.console,
    })
}

/// `SRC[=DST]`; without DST the file has the same absolute path in the node.
pub(crate) fn placed(text: &str) -> Result<Placed> {
    let (source, inside) = match text.split_once('=') {
        Some((source, inside)) => (PathBuf::from(source), PathBuf::from(inside)),
        None => (PathBuf::from(text), absolute(Path::new(text))?),
    };
    Ok(Placed { source, inside })
}

fn collect(text: &str) -> Result<Collect> {
    match text.split_once('=') {
        Some((inside, target)) => Ok(Collect { inside: inside.into(), target: target.into() }),
        None => Err(Error::Usage(format!("--collect {text}: give it as PATH_IN_NODE=HOST_PATH"))),
    }
}

fn variable(text: &str) -> Option<(OsString, OsString)> {
    match text.split_once('=') {
        Some((name, value)) => Some((name.into(), value.into())),
        None => Some((text.into(), env::var_os(text)?)),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).on("find", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_of_the_program_are_its_own() {
        let cli = Cli::parse_from(["nestling-node", "runner", "/t/guest-1", "--nocapture", "--timeout", "3"]);
        let Command::Runner(args) = cli.command else { panic!("not a runner") };
        assert_eq!(args.program.args, ["--nocapture", "--timeout", "3"]);
        assert_eq!(args.node.timeout, 900);
    }

    #[test]
    fn a_file_goes_to_the_same_path_unless_told_otherwise() {
        let inside = |text| placed(text).unwrap().inside;
        assert_eq!(inside("/boot/vmlinuz"), Path::new("/boot/vmlinuz"));
        assert_eq!(inside("/boot/vmlinuz=/k"), Path::new("/k"));
        assert_eq!(inside("k"), env::current_dir().unwrap().join("k"));
    }
}
