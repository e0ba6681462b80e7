//! `nestling-initramfs`: packs an initramfs from the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nestling_initramfs::{DEFAULT_MODULES, Error, Recipe};

/// Packs an initramfs: an init, the kernel modules it loads, extra files. The same input gives the same bytes.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The static program that becomes /init
    #[arg(long, value_name = "FILE")]
    init: PathBuf,
    /// A directory with lib/modules/RELEASE, for a kernel whose virtio drivers are modules
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// A module to load beside the usual ones (virtio_pci virtio_console virtio_blk virtio_rng); repeatable
    #[arg(long = "module", value_name = "NAME", requires = "kernel")]
    modules: Vec<String>,
    /// Load no module but those given with --module
    #[arg(long, requires = "kernel")]
    no_default_modules: bool,
    /// A module to pack but not to load: it can be loaded by name later; repeatable
    #[arg(long = "spare-module", value_name = "NAME", requires = "kernel")]
    spare_modules: Vec<String>,
    /// A file, and where it goes in the guest; repeatable
    #[arg(long = "file", value_name = "SRC=DST")]
    files: Vec<String>,
    /// A program like --file, with the shared libraries it is linked with; repeatable
    #[arg(long = "program", value_name = "SRC=DST")]
    programs: Vec<String>,
    /// A symbolic link in the guest; repeatable
    #[arg(long = "symlink", value_name = "TARGET=LINK")]
    symlinks: Vec<String>,
    /// A static busybox, installed in /bin with its applets
    #[arg(long, value_name = "FILE")]
    busybox: Option<PathBuf>,
    /// The archive to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match pack(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let reasons =
                std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            let sentence: Vec<String> = reasons.map(ToString::to_string).collect();
            eprintln!("nestling-initramfs: {}", sentence.join(": "));
            ExitCode::FAILURE
        }
    }
}

fn pack(arguments: Arguments) -> Result<(), Error> {
    let defaults = DEFAULT_MODULES.iter().map(ToString::to_string).filter(|_| !arguments.no_default_modules);
    let files = placed(&arguments.files, "--file SRC=DST")?;
    let programs = placed(&arguments.programs, "--program SRC=DST")?;
    let symlinks = arguments.symlinks.iter().map(|given| pair(given, "--symlink TARGET=LINK"));
    let recipe = Recipe {
        init: arguments.init,
        kernel: arguments.kernel,
        modules: defaults.chain(arguments.modules).collect(),
        spare_modules: arguments.spare_modules,
        files,
        programs,
        symlinks: symlinks.collect::<Result<_, Error>>()?,
        busybox: arguments.busybox,
    };
    recipe.pack_into(&arguments.out)
}

fn placed(given: &[String], form: &'static str) -> Result<Vec<(PathBuf, String)>, Error> {
    given.iter().map(|given| pair(given, form).map(|(source, path)| (source.into(), path))).collect()
}

/// Splits at the last `=`: a path of this machine may well have one, a path of the guest seldom does.
fn pair(given: &str, form: &'static str) -> Result<(String, String), Error> {
    let (left, right) = given.rsplit_once('=').ok_or(Error::Pair { given: given.into(), form })?;
    Ok((left.into(), right.into()))
}
