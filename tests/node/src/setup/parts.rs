//! The two parts that are made: a Bochs with VMX, and the machine's firmware, kernel and modules.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::debian;
use crate::error::{Doing, Error, Result};
use crate::machine::kernel::{self, Placement};
use crate::report::Report;

const BUILD_BOCHS: &str = include_str!("../../build-bochs.sh");
const FETCH_MACHINE: &str = include_str!("../../fetch-machine.sh");
const PATCHES: [(&str, &str); 3] = [
    ("ram-image-per-block.patch", include_str!("../../bochs/ram-image-per-block.patch")),
    ("fixed-rdrand-seed.patch", include_str!("../../bochs/fixed-rdrand-seed.patch")),
    ("e9-flush-per-line.patch", include_str!("../../bochs/e9-flush-per-line.patch")),
];

/// All that decides what Bochs will be.
pub(super) const BOCHS_RECIPE: &[&str] = &[BUILD_BOCHS, PATCHES[0].1, PATCHES[1].1, PATCHES[2].1];
/// All that decides what the machine will be; the number counts changes of [`fetch_machine`] itself.
pub(super) const MACHINE_RECIPE: &[&str] = &[FETCH_MACHINE, "1"];

pub(super) const KERNEL_IMAGE: &str = "kernel.image";
const PLACEMENT: &str = "kernel.json";

/// Builds Bochs into `dir`.
pub(super) fn build_bochs(dir: &Path, report: &Report) -> Result<()> {
    report.say("building Bochs from Debian's source package, once: two to four minutes");
    debian::require(&["g++", "make", "patch", "xz"], report)?;
    debian::fresh_lists(report)?;
    let recipe = dir.join("recipe");
    let patches = recipe.join("bochs");
    fs::create_dir_all(&patches).on("create", &patches)?;
    for (name, text) in PATCHES {
        write(&patches.join(name), text)?;
    }
    run_script(&recipe, "build-bochs.sh", BUILD_BOCHS, dir)?;
    report.step("Bochs built");
    fs::remove_dir_all(&recipe).on("remove", &recipe)
}

/// Fetches firmware, kernel and modules into `dir`, and lays the kernel out for loading.
pub(super) fn fetch_machine(dir: &Path, report: &Report) -> Result<()> {
    report.say("fetching the node's kernel and firmware from Debian's packages, once");
    debian::require(&["lz4", "zstd", "xz"], report)?;
    debian::fresh_lists(report)?;
    let recipe = dir.join("recipe");
    fs::create_dir(&recipe).on("create", &recipe)?;
    run_script(&recipe, "fetch-machine.sh", FETCH_MACHINE, dir)?;
    fs::remove_dir_all(&recipe).on("remove", &recipe)?;
    unpack_kernel(dir)?;
    report.step("kernel and firmware fetched");
    Ok(())
}

fn run_script(recipe: &Path, name: &str, text: &str, out: &Path) -> Result<()> {
    let script = recipe.join(name);
    write(&script, text)?;
    let mend = "the lines above say why; `apt-get update` mends package lists that are out of date";
    debian::run(Command::new("bash").arg(&script).arg(out), name, mend)
}

/// `vmlinuz` → the flat image and its placement.
fn unpack_kernel(dir: &Path) -> Result<()> {
    let bz_image = dir.join("vmlinuz");
    let problem = |what| Error::Kernel { path: dir.to_owned(), what };
    let bytes = fs::read(&bz_image).on("read", &bz_image)?;
    let (packed, payload) = kernel::payload(&bytes).map_err(problem)?;
    let compressed = dir.join("payload");
    fs::write(&compressed, payload).on("write", &compressed)?;
    let input = File::open(&compressed).on("open", &compressed)?;
    let unpacked = Command::new(packed.tool()).arg("-dc").stdin(input).output().doing("unpack the kernel")?;
    if !unpacked.status.success() {
        let mend = "the kernel package may be damaged: try again";
        return Err(Error::Tool { tool: packed.tool().to_owned(), status: unpacked.status, mend });
    }
    let (placement, image) = kernel::flatten(&unpacked.stdout).map_err(problem)?;
    let path = dir.join(KERNEL_IMAGE);
    fs::write(&path, image).on("write", &path)?;
    let text = serde_json::to_string(&placement).doing("describe the kernel")?;
    write(&dir.join(PLACEMENT), &text)?;
    fs::remove_file(&compressed).on("remove", &compressed)?;
    fs::remove_file(&bz_image).on("remove", &bz_image)
}

pub(super) fn read_placement(dir: &Path) -> Result<Placement> {
    let path = dir.join(PLACEMENT);
    let text = fs::read(&path).on("read", &path)?;
    serde_json::from_slice(&text).on("understand", &path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).on("write", path)
}
