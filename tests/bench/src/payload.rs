//! VMMs side by side on this machine's own `/dev/kvm`: the smallest guest that says a line and waits.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use clap::Args;

use crate::Result;
use crate::calls::{Calls, Watch};
use crate::observed::{load, machine, overhead, threads};
use crate::start::{Process, Spent};
use crate::table::{Row, print};
use crate::vmm::{GUEST_MIB, Vmm};

/// When the guest has spoken, the VMM has this long to come to rest before its memory is read.
const REST: Duration = Duration::from_millis(50);

/// Compare VMMs on a guest of a dozen instructions, on this machine's /dev/kvm
#[derive(Debug, Args)]
pub(crate) struct PayloadArgs {
    /// The nestling to measure
    #[arg(long, value_name = "FILE")]
    nestling: PathBuf,
    /// The QEMU to compare it with
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// A PVH guest that prints a line on COM1 and waits
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Runs of each VMM, taken in turns
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// One VMM and what was measured of it, a value a round.
struct Contender {
    vmm: Vmm,
    lines: Vec<Spent>,
    entries: Vec<Spent>,
    rss_kib: Vec<f64>,
    pss_kib: Vec<f64>,
    threads: Vec<f64>,
}

pub(crate) fn run(args: &PayloadArgs) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let vmms = [Some(Vmm::nestling(&args.nestling)), args.qemu.as_deref().map(Vmm::qemu)];
    let mut contenders: Vec<Contender> = vmms.into_iter().flatten().map(Contender::new).collect();
    println!("Machine: {}; {}.", machine(), load());
    for _ in 0..args.rounds {
        for contender in &mut contenders {
            contender.round(&args.kernel, scratch.path())?;
        }
    }
    report(&contenders, args, scratch.path())
}

impl Contender {
    fn new(vmm: Vmm) -> Self {
        let (lines, entries) = (Vec::new(), Vec::new());
        Self { vmm, lines, entries, rss_kib: Vec::new(), pss_kib: Vec::new(), threads: Vec::new() }
    }

    /// Runs it twice: untouched, and to see its first KVM_RUN.
    fn round(&mut self, kernel: &Path, scratch: &Path) -> Result<()> {
        let mut process = Process::start(self.vmm.run(kernel, scratch), None)?;
        self.lines.push(process.await_line()?);
        sleep(REST);
        let memory = overhead(process.pid(), GUEST_MIB)?;
        self.rss_kib.push(memory.rss_kib as f64);
        self.pss_kib.push(memory.pss_kib as f64);
        self.threads.push(threads(process.pid())? as f64);
        process.end();
        let calls = calls(&self.vmm, Watch::KvmRun, kernel, scratch)?;
        self.entries.push(calls.at_first_run.ok_or("the VMM never ran its guest")?);
        Ok(())
    }
}

/// Runs it until its guest has spoken, with its system calls watched.
fn calls(vmm: &Vmm, watch: Watch, kernel: &Path, scratch: &Path) -> Result<Calls> {
    let mut process = Process::start(vmm.run(kernel, scratch), Some(watch))?;
    process.await_line()?;
    sleep(REST);
    Ok(process.end())
}

fn report(contenders: &[Contender], args: &PayloadArgs, scratch: &Path) -> Result<()> {
    let mut header = vec![format!("payload guest, {GUEST_MIB} MiB, 1 vCPU")];
    let mut counts = Vec::new();
    let mut sizes = Vec::new();
    for contender in contenders {
        header.push(contender.vmm.title()?);
        counts.push(calls(&contender.vmm, Watch::EveryCall, &args.kernel, scratch)?);
        sizes.push(contender.vmm.disk_bytes()?);
    }
    if contenders.len() == 2 {
        header.push("ratio".to_owned());
    }
    let row = |what: &str, digits, of: &dyn Fn(&Contender) -> Vec<f64>| {
        Row { what: what.to_owned(), digits, values: contenders.iter().map(of).collect() }.cells()
    };
    let wall = |spent: &[Spent]| spent.iter().map(|spent| spent.wall_ms).collect();
    let cpu = |spent: &[Spent]| spent.iter().map(|spent| spent.cpu_ms).collect();
    let count = |what: &str, of: &dyn Fn(&Calls) -> u64| {
        Row {
            what: what.to_owned(),
            digits: 0,
            values: counts.iter().map(|calls| vec![of(calls) as f64]).collect(),
        }
        .cells()
    };
    let size = |what: &str, digits, of: &dyn Fn(&(u64, usize)) -> f64| {
        Row { what: what.to_owned(), digits, values: sizes.iter().map(|size| vec![of(size)]).collect() }
            .cells()
    };
    let rows = [
        row("exec to first KVM_RUN: CPU ms", 2, &|c| cpu(&c.entries)),
        row("exec to first KVM_RUN: wall ms", 2, &|c| wall(&c.entries)),
        row("exec to the guest's line: CPU ms", 2, &|c| cpu(&c.lines)),
        row("exec to the guest's line: wall ms", 2, &|c| wall(&c.lines)),
        row("resident beyond guest RAM (RSS), KiB", 0, &|c| c.rss_kib.clone()),
        row("the same, shared pages in proportion (PSS), KiB", 0, &|c| c.pss_kib.clone()),
        row("threads", 0, &|c| c.threads.clone()),
        count("system calls before the first KVM_RUN", &|calls| calls.before_first_run),
        count("ioctls among them", &|calls| calls.ioctls_before_first_run),
        count("KVM_RUN calls until the guest waits", &|calls| calls.runs),
        size("program and its libraries on disk, MiB", 1, &|(bytes, _)| *bytes as f64 / f64::from(1 << 20)),
        size("files of these", 0, &|(_, files)| *files as f64),
    ];
    println!("Median (least) of {} runs each, taken in turns.\n", args.rounds);
    print(&header, &rows);
    Ok(())
}
