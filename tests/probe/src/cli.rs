//! The command line: which words there are, and what each calls.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::disk::Area;
use crate::error::Result;
use crate::exchange::Options;
use crate::sockets::Address;
use crate::streams::Flow;
use crate::{
    batch, churn, console, datagrams, disk, echo, exchange, files, interrupts, memory, modules, sockets,
    streams, tap, watchdog,
};

/// Works a device from inside a guest, or the host's side of it: prints key=value, fails at the first mismatch.
#[derive(Debug, Parser)]
#[command(name = "nestling-probe", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write blocks that say where they belong, each once
    DiskFill {
        #[command(flatten)]
        area: Area,
        /// In a random order
        #[arg(long)]
        random: bool,
        /// Flush at the end, and say so when it is done
        #[arg(long)]
        fsync: bool,
    },
    /// Read and compare what disk-fill wrote
    DiskVerify {
        #[command(flatten)]
        area: Area,
        /// In a random order, another one than that of writing
        #[arg(long)]
        random: bool,
    },
    /// Mix reads, writes, zero-outs, discards and flushes, and compare all that is read
    DiskChurn {
        #[command(flatten)]
        area: Area,
        /// How many, all threads together
        #[arg(long, default_value_t = 10_000)]
        operations: u64,
        /// Discard nothing
        #[arg(long)]
        no_discard: bool,
    },
    /// Random reads and writes of a filled disk, --depth of them in one system call, every read verified
    DiskBatch {
        #[command(flatten)]
        area: Area,
        #[arg(long, default_value_t = 10_000)]
        operations: u64,
    },
    /// Send the seeded stream over TCP
    TcpSend {
        to: SocketAddr,
        #[command(flatten)]
        flow: Flow,
    },
    /// Receive and compare it
    TcpRecv {
        /// ADDRESS:PORT
        #[arg(long)]
        listen: SocketAddr,
        #[command(flatten)]
        flow: Flow,
    },
    /// Send back what comes over TCP
    TcpEcho {
        /// ADDRESS:PORT
        #[arg(long)]
        listen: SocketAddr,
        /// End after so many connections (0: never)
        #[arg(long, default_value_t = 0)]
        count: u64,
    },
    /// Exchange the seeded stream with an echo over TCP
    TcpConnect {
        to: SocketAddr,
        #[command(flatten)]
        flow: Flow,
        #[command(flatten)]
        options: Options,
    },
    /// Send back what comes over UDP
    UdpEcho {
        /// ADDRESS:PORT
        #[arg(long)]
        listen: SocketAddr,
        /// End after so many datagrams (0: never)
        #[arg(long, default_value_t = 0)]
        count: u64,
    },
    /// Send datagrams to an echo, and compare what comes back
    UdpPing {
        to: SocketAddr,
        #[arg(long, default_value_t = 10)]
        count: u64,
        /// Bytes of each
        #[arg(long, default_value_t = 1000)]
        size: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How long to wait for each
        #[arg(long, default_value_t = 2000)]
        patience_ms: u64,
    },
    /// Send back what comes over vsock
    VsockEcho {
        #[arg(long)]
        port: u32,
        /// End after so many connections (0: never)
        #[arg(long, default_value_t = 0)]
        count: u64,
    },
    /// Exchange the seeded stream with an echo over vsock
    VsockConnect {
        /// 2 is the host
        #[arg(long, default_value_t = 2)]
        cid: u32,
        #[arg(long)]
        port: u32,
        #[command(flatten)]
        flow: Flow,
        #[command(flatten)]
        options: Options,
    },
    /// The host's side: exchange with an echo in the guest through the VMM's Unix socket
    UnixConnect {
        path: PathBuf,
        /// Ask for this port of the guest by `CONNECT port`; without it the socket is the echo itself
        #[arg(long)]
        vsock_port: Option<u32>,
        #[command(flatten)]
        flow: Flow,
        #[command(flatten)]
        options: Options,
    },
    /// The host's side: send back what the guest sends to the port whose socket this is (PATH_PORT)
    UnixListen {
        path: PathBuf,
        /// End after so many connections (0: never)
        #[arg(long, default_value_t = 0)]
        count: u64,
    },
    /// Touch memory, wait for a line, free it, wait for a line
    MemTouch {
        #[arg(long)]
        bytes: usize,
    },
    /// Pet a watchdog for a while, and then no more
    Watchdog {
        #[arg(long, default_value = "/dev/watchdog")]
        device: PathBuf,
        /// Seconds until it bites; without it, what the driver has
        #[arg(long)]
        timeout: Option<i32>,
        /// How often to pet it
        #[arg(long, default_value_t = 1)]
        pet: u32,
        #[arg(long, default_value_t = 100)]
        interval_ms: u64,
        /// Disarm it at the end
        #[arg(long)]
        magic_close: bool,
    },
    /// Send back what comes in at a console's port
    ConsoleEcho {
        device: PathBuf,
        #[arg(long)]
        bytes: u64,
        /// How long nothing may come
        #[arg(long, default_value_t = 10_000)]
        patience_ms: u64,
    },
    /// Do everything that programs do with files in a directory
    FileCheck { directory: PathBuf },
    /// How often each queue of each virtio device has interrupted
    Irqs,
    /// Make a persistent tap interface (the host's side of a network device)
    Tap {
        name: String,
        /// One that can be opened several times, once for each pair of queues
        #[arg(long)]
        multi_queue: bool,
    },
    /// Load kernel modules by name, with what they need
    Load {
        /// NAME or NAME,PARAMETER=VALUE
        #[arg(required = true)]
        modules: Vec<String>,
    },
}

/// `VMADDR_CID_ANY` of linux/vm_sockets.h.
const ANY_CID: u32 = u32::MAX;

/// Does what the command line says.
pub(crate) fn run() -> Result<()> {
    let command = Cli::parse().command;
    sockets::raise_descriptor_limit()?;
    match command {
        Command::DiskFill { area, random, fsync } => disk::fill(&area, random, fsync),
        Command::DiskVerify { area, random } => disk::verify(&area, random),
        Command::DiskChurn { area, operations, no_discard } => churn::churn(&area, operations, !no_discard),
        Command::DiskBatch { area, operations } => batch::batch(&area, operations),
        Command::TcpSend { to, flow } => streams::send(&Address::Tcp(to), flow),
        Command::TcpRecv { listen, flow } => streams::receive(&Address::Tcp(listen), flow),
        Command::TcpEcho { listen, count } => echo::echo(&Address::Tcp(listen), count),
        Command::TcpConnect { to, flow, options } => exchange::exchange(&Address::Tcp(to), flow, options),
        Command::UdpEcho { listen, count } => datagrams::echo(listen, count),
        Command::UdpPing { to, count, size, seed, patience_ms } => {
            datagrams::ping(to, count, size, seed, Duration::from_millis(patience_ms))
        }
        Command::VsockEcho { port, count } => echo::echo(&Address::Vsock { cid: ANY_CID, port }, count),
        Command::VsockConnect { cid, port, flow, options } => {
            exchange::exchange(&Address::Vsock { cid, port }, flow, options)
        }
        Command::UnixConnect { path, vsock_port, flow, options } => {
            let to = match vsock_port {
                Some(port) => Address::Hybrid { path, port },
                None => Address::Unix(path),
            };
            exchange::exchange(&to, flow, options)
        }
        Command::UnixListen { path, count } => echo::echo(&Address::Unix(path), count),
        Command::MemTouch { bytes } => memory::touch(bytes),
        Command::Watchdog { device, timeout, pet, interval_ms, magic_close } => {
            watchdog::watch(&device, timeout, pet, Duration::from_millis(interval_ms), magic_close)
        }
        Command::ConsoleEcho { device, bytes, patience_ms } => {
            console::echo(&device, bytes, Duration::from_millis(patience_ms))
        }
        Command::FileCheck { directory } => files::check(&directory),
        Command::Irqs => interrupts::print(),
        Command::Tap { name, multi_queue } => tap::make(&name, multi_queue),
        Command::Load { modules } => modules::load(&modules),
    }
}
