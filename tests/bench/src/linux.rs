//! Linux guests, booted and counted. Counts are what matters: in an emulated node they are the same in every run.

mod boot;
mod steady;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;

use self::boot::Boot;
use self::steady::Steady;
use crate::Result;
use crate::observed::machine;
use crate::table::{Row, print};

/// Guest RAM in MiB.
const GUEST_MIB: u64 = 256;

/// Boot Linux guests, and count exits, time and memory
#[derive(Debug, Args)]
pub(crate) struct LinuxArgs {
    /// The nestling to measure
    #[arg(long, value_name = "FILE")]
    nestling: PathBuf,
    /// A stock kernel: a directory with vmlinux and initramfs.cpio
    #[arg(long, value_name = "DIR")]
    stock: PathBuf,
    /// A kernel of Nestling's own: the same
    #[arg(long, value_name = "DIR")]
    own: PathBuf,
}

/// A guest to measure: a column of the table.
#[derive(Debug, Clone, Copy)]
struct Guest<'a> {
    nestling: &'a Path,
    directory: &'a Path,
    console: &'static str,
    scratch: &'a Path,
}

pub(crate) fn run(args: &LinuxArgs) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let guest =
        |directory, console| Guest { nestling: &args.nestling, directory, console, scratch: scratch.path() };
    let guests = [guest(&args.stock, "virtio"), guest(&args.stock, "serial"), guest(&args.own, "virtio")];
    // The first VM of a node pays for what KVM sets up once; it is not counted.
    Boot::measure(&guests[0])?;
    let mut header = vec![format!("Linux guest, {GUEST_MIB} MiB, 1 vCPU")];
    let mut measured = Vec::new();
    for guest in &guests {
        header.push(guest.title());
        measured.push((Boot::measure(guest)?, Steady::measure(guest)?));
    }
    println!("\nMachine: {}.\n", machine());
    print(&header, &rows(&measured));
    Ok(())
}

impl Guest<'_> {
    /// Kernel and console.
    fn title(&self) -> String {
        let release = std::fs::read_to_string(self.directory.join("release")).unwrap_or_default();
        format!("{}, {} console", release.trim(), self.console)
    }
}

fn rows(measured: &[(Boot, Steady)]) -> Vec<Vec<String>> {
    let row = |what: &str, digits, of: &dyn Fn(&(Boot, Steady)) -> f64| {
        Row { what: what.to_owned(), digits, values: measured.iter().map(|one| vec![of(one)]).collect() }
            .cells()
    };
    let mut rows = vec![row("boot to power-off: exits to user space", 0, &|(boot, _)| {
        boot.exits.values().sum::<u64>() as f64
    })];
    let reasons: BTreeSet<&String> = measured.iter().flat_map(|(boot, _)| boot.exits.keys()).collect();
    for reason in reasons {
        let name = format!("  {reason}");
        rows.push(row(&name, 0, &|(boot, _)| boot.exits.get(reason).copied().unwrap_or(0) as f64));
    }
    rows.extend([
        row("boot to power-off: all VM exits", 0, &|(boot, _)| boot.kvm_exits as f64),
        row("exec to the guest's first instruction, ms", 0, &|(boot, _)| boot.stage("entered")),
        row("exec to the kernel's first PCI device, ms", 0, &|(boot, _)| boot.stage("kernel")),
        row("exec to the init's first line, ms", 0, &|(boot, _)| boot.stage("init")),
        row("exec to the end after power-off, ms", 0, &|(boot, _)| boot.end_ms),
        row("exits to user space by 1,000 disk reads and a line", 0, &|(_, steady)| steady.exits as f64),
        row("guest RAM touched, MiB", 0, &|(_, steady)| steady.touched_mib),
        row("of it in huge pages, %", 0, &|(_, steady)| steady.huge_percent),
        row("resident beyond guest RAM (RSS), KiB", 0, &|(_, steady)| steady.overhead.rss_kib as f64),
        row("threads", 0, &|(_, steady)| steady.threads as f64),
    ]);
    rows
}
