//! `nestling disk`: makes, shows and converts images, for who has no qemu-img; and makes a running VM's disk larger.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::{SocketArgs, output};
use crate::agent::chain::{chain, one_line};
use crate::agent::exit::Exit;
use crate::backend::disk::{
    Access, Backing, DiskError, Format, Held, Image, ImageInfo, Layer, NewImage, convert, create, info,
};
use crate::spec::size::parse_size;
use crate::status::client::Client;

/// Make, show and convert disk images; make the disk of a running VM larger
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done; 201 an image, a disk or a size that cannot be; 211 and 212 as `resize --help` says."
)]
pub(super) struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Debug, Subcommand)]
enum DiskCommand {
    Create(CreateArgs),
    Info(InfoArgs),
    Convert(ConvertArgs),
    Resize(ResizeArgs),
}

/// The formats of images.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    Raw,
    Qcow2,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Raw => Self::Raw,
            FormatArg::Qcow2 => Self::Qcow2,
        }
    }
}

/// Make an empty image
///
/// A qcow2 image with a backing file shows that file's bytes until it is written to; the backing file itself is never
/// changed, so that many images share it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nestling disk create work.img 10G
  nestling disk create vm1.qcow2 --backing base.qcow2")]
struct CreateArgs {
    /// The image to make
    path: PathBuf,
    /// Size of the disk, such as 512M or 10G; with --backing, the base's size if left out
    #[arg(value_parser = size)]
    size: Option<u64>,
    /// Its format; if left out, qcow2 for a name that ends in .qcow2 and with --backing, else raw
    #[arg(long)]
    format: Option<FormatArg>,
    /// The image it is based on, as seen from the new image's directory, or an absolute path
    #[arg(long, value_name = "BASE")]
    backing: Option<String>,
    /// The base's format, if its name does not tell
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    backing_format: Option<FormatArg>,
    /// Replace an image that is there
    #[arg(long)]
    force: bool,
}

/// Show an image: format, sizes, backing files, who has it open
#[derive(Debug, Args)]
struct InfoArgs {
    /// The image
    path: PathBuf,
    /// Its format, if its name and its beginning do not agree
    #[arg(long)]
    format: Option<FormatArg>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Copy a disk into a new image, without its zeroes and without backing files
///
/// The new image appears under its name when it is complete, or not at all. Progress is shown on stderr.
#[derive(Debug, Args)]
struct ConvertArgs {
    /// The image to read
    source: PathBuf,
    /// The image to make
    target: PathBuf,
    /// The source's format, if its name and its beginning do not agree
    #[arg(long, value_name = "FORMAT")]
    source_format: Option<FormatArg>,
    /// The new image's format; if left out, qcow2 for a name that ends in .qcow2, else raw
    #[arg(long)]
    format: Option<FormatArg>,
    /// Replace an image that is there
    #[arg(long)]
    force: bool,
}

/// Make a disk of a running VM larger
///
/// Its image grows by zeroes, and the guest is told. What is on the disk, partitions and file systems, is the guest's to
/// make larger. No disk becomes smaller by request.
#[derive(Debug, Args)]
#[command(after_help = concat!("Examples:
  nestling disk resize vda 20G
  nestling disk resize vdb        # its block device or read-only image has become larger by other means

", client_exits!()))]
struct ResizeArgs {
    /// The disk: its serial number, its name in the guest (vda), or its place among the --disk options, from 0
    disk: String,
    /// The size it should have, such as 20G; without one, it has the size of its image from now on
    size: Option<String>,
    #[command(flatten)]
    instance: SocketArgs,
}

/// Runs the command.
pub(super) fn run(args: &DiskArgs) -> Exit {
    let mut signals = HeldSignals::default();
    let done = match &args.command {
        DiskCommand::Create(args) => make(args, &mut signals),
        DiskCommand::Info(args) => show(args),
        DiskCommand::Convert(args) => copy(args, &mut signals),
        DiskCommand::Resize(args) => return resize(args),
    };
    match done {
        Ok(()) => Exit::Success,
        Err(DiskError::Stopped(_)) if signals.came == Some(Signal::SIGINT) => Exit::Interrupted,
        Err(DiskError::Stopped(_)) => Exit::Terminated,
        Err(error) => {
            output::complain(&chain(&error));
            Exit::BadInput
        }
    }
}

fn resize(args: &ResizeArgs) -> Exit {
    let client = Client::new(&args.instance.socket);
    super::ask(client.resize_disk(&args.disk, args.size.as_deref()))
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write for example 512M, 10G or a number of bytes".to_owned())
}

/// The format of a new image: what is said, else what its name says.
fn format_of(path: &Path, said: Option<FormatArg>) -> Format {
    let named = path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("qcow2"));
    said.map_or(if named { Format::Qcow2 } else { Format::Raw }, Format::from)
}

/// What was made. One whose name tells another format is refused wherever nobody says the format: that is said now.
fn made(path: &Path, format: Format, bytes: u64) -> String {
    let mut text = format!("{}: {}, {}", path.display(), format.name(), in_units(bytes));
    if format != format_of(path, None) {
        text.push_str(&format!(
            "; its name does not say so: use it with format={0}, or --format {0}",
            format.name()
        ));
    }
    text + "\n"
}

fn make(args: &CreateArgs, signals: &mut HeldSignals) -> Result<(), DiskError> {
    signals.hold();
    let format = match (args.format, &args.backing) {
        (None, Some(_)) => Format::Qcow2,
        (said, _) => format_of(&args.path, said),
    };
    let backing = args
        .backing
        .as_ref()
        .map(|name| Backing { name: name.clone(), format: args.backing_format.map(Format::from) });
    let new = NewImage { path: args.path.clone(), format, size_bytes: args.size, backing, force: args.force };
    let bytes = create(&new)?;
    output::print(&made(&args.path, format, bytes));
    Ok(())
}

fn show(args: &InfoArgs) -> Result<(), DiskError> {
    let info = info(&args.path, args.format.map(Format::from));
    let info = info.map_err(|error| error.answered_by("--format "))?;
    if args.json {
        // Plain data always has a JSON form.
        output::print(&format!("{}\n", serde_json::to_string_pretty(&info).unwrap_or_default()));
    } else {
        output::print(&in_words(&info));
    }
    Ok(())
}

fn in_words(info: &ImageInfo) -> String {
    let mut text = String::new();
    for layer in &info.layers {
        let head = if text.is_empty() { "image" } else { "backing file" };
        text.push_str(&format!("{head:<13} {}\n", one_line(&layer.path.to_string_lossy())));
        for (name, value) in lines(layer) {
            text.push_str(&format!("  {name:<11} {value}\n"));
        }
    }
    if let Some(reason) = &info.broken {
        text.push_str(&format!("backing file  cannot be used: {}\n", one_line(reason)));
    }
    text
}

fn lines(layer: &Layer) -> Vec<(&'static str, String)> {
    let mut format = layer.format.name().to_owned();
    if let (Some(version), Some(cluster)) = (layer.version, layer.cluster_bytes) {
        format.push_str(&format!(", version {version}, clusters of {}", in_units(cluster)));
    }
    let mut lines = vec![
        ("format", format),
        ("disk", in_units(layer.virtual_bytes)),
        ("allocated", in_units(layer.allocated_bytes)),
    ];
    if let Some(snapshots) = layer.snapshots.filter(|count| *count > 0) {
        lines.push(("snapshots", snapshots.to_string()));
    }
    let by = if layer.held_by.is_empty() {
        String::new()
    } else {
        format!(" by process {}", layer.held_by.join(", "))
    };
    match layer.lock {
        Held::Free => {}
        Held::Shared => lines.push(("open", format!("to read{by}"))),
        Held::Exclusive => lines.push(("open", format!("to write{by}"))),
    }
    lines
}

/// `10 GiB (10737418240 bytes)`.
fn in_units(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let tenths = (u128::from(bytes) * 10) >> shift;
            let (whole, tenth) = (tenths / 10, tenths % 10);
            let tenth = if tenth == 0 { String::new() } else { format!(".{tenth}") };
            return format!("{whole}{tenth} {unit} ({bytes} bytes)");
        }
    }
    format!("{bytes} bytes")
}

fn copy(args: &ConvertArgs, signals: &mut HeldSignals) -> Result<(), DiskError> {
    signals.hold();
    let format = format_of(&args.target, args.format);
    let source = Image {
        path: args.source.clone(),
        format: args.source_format.map(Format::from),
        access: Access::READ,
        follow_backing: true,
    };
    let shown = std::io::stderr().is_terminal();
    let mut last = None;
    let result = convert(&source, &args.target, format, args.force, &mut |done, total| {
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        if shown && last != Some(percent) {
            last = Some(percent);
            output::print_error(&format!("\r{percent} %"));
        }
        if signals.came() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if shown && last.is_some() {
        output::print_error("\n");
    }
    let bytes = result.map_err(|error| error.answered_by("--source-format "))?;
    output::print(&made(&args.target, format, bytes));
    Ok(())
}

/// SIGINT, SIGTERM and SIGHUP, held back while an image is made: it is taken away before they are followed.
#[derive(Default)]
struct HeldSignals {
    held: Option<(SignalFd, SigSet)>,
    came: Option<Signal>,
}

impl HeldSignals {
    /// From now on they wait. Where they cannot be made to wait, they kill us as ever.
    fn hold(&mut self) {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        if let Ok(fd) = SignalFd::with_flags(&signals, flags)
            && let Ok(before) = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)
        {
            self.held = Some((fd, before));
        }
    }

    /// Whether one of them has come.
    fn came(&mut self) -> bool {
        if let Some((fd, _)) = &self.held
            && let Ok(Some(signal)) = fd.read_signal()
        {
            self.came = i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
        }
        self.came.is_some()
    }
}

/// One that has come and was not asked for kills us now.
impl Drop for HeldSignals {
    fn drop(&mut self) {
        if let Some((_, before)) = &self.held {
            // The mask was valid before; there is nobody to tell.
            let _ = before.thread_set_mask();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_the_largest_unit_and_in_bytes() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB (1536 bytes)"),
            (10 << 30, "10 GiB (10737418240 bytes)"),
            (u64::MAX, "16777215.9 TiB (18446744073709551615 bytes)"),
        ] {
            assert_eq!(in_units(bytes), text);
        }
    }

    #[test]
    fn an_image_whose_name_tells_another_format_is_pointed_out() {
        for (path, format, hint) in [
            ("a.img", Format::Raw, ""),
            ("a.QCOW2", Format::Qcow2, ""),
            (
                "a.img",
                Format::Qcow2,
                "; its name does not say so: use it with format=qcow2, or --format qcow2",
            ),
            ("a.qcow2", Format::Raw, "; its name does not say so: use it with format=raw, or --format raw"),
        ] {
            assert_eq!(
                made(path.as_ref(), format, 512),
                format!("{path}: {}, 512 bytes{hint}\n", format.name())
            );
        }
    }
}
