//! `nestling attach`: our terminal becomes the guest's console.

mod key;

use std::future::pending;
use std::io::{self, IsTerminal, Read};
use std::thread;

use clap::Args;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use self::key::DetachKey;
use super::{SocketArgs, output};
use crate::agent::chain::chain;
use crate::agent::exit::Exit;
use crate::backend::console::terminal::{self, RawTerminal};
use crate::status::client::{Client, ClientError};

/// Lines of history shown first, when the size of a screen is not known.
const SCREENFUL: usize = 24;
/// Pieces of input, and of output, that wait for their turn.
const PIECES_IN_FLIGHT: usize = 8;
/// Bytes in one of them.
const PIECE_BYTES: usize = 4096;

const EXAMPLES: &str = "\
Examples:
  nestling attach
  nestling attach --escape ctrl-q
  echo 'uname -a' | nestling attach --no-history

The guest gets every key but the one that detaches: Ctrl-] unless --escape says another. (Ctrl-A x belongs to the terminal of
`nestling run`, where it stops the VM.) The last screenful is shown first, and the guest's console takes on the size of the
terminal. When stdin is no terminal, what comes from it is typed, its end changes nothing, and no key detaches.

Exit codes: 0 detached, or the VM ended; 130 or 143 ended by SIGINT or SIGTERM; 201 a key that is none;
211 no VM answers on the socket; 212 too many clients are attached.";

/// Type on the guest's console and see what it shows; Ctrl-] detaches
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, after_help = "See --help for examples and exit codes.")]
pub(super) struct AttachArgs {
    #[command(flatten)]
    instance: SocketArgs,

    /// The key that detaches: ctrl-] and the like, or none
    #[arg(long, value_name = "KEY", default_value = "ctrl-]", value_parser = DetachKey::parse)]
    escape: DetachKey,

    /// Do not show the last screenful first
    #[arg(long)]
    no_history: bool,

    /// Only show: nothing is typed
    #[arg(long)]
    no_stdin: bool,
}

/// Why an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The key was pressed.
    Detached,
    /// The console's end came.
    WithTheVm,
    /// Nobody reads our stdout any more.
    NobodyReads,
    Signal(Exit),
}

/// Runs the command.
pub(super) fn run(args: &AttachArgs) -> Exit {
    let ended = super::block_on(attach(args));
    // Before anything is said: a raw terminal shows lines as stairs.
    terminal::restore();
    let (sentence, exit) = match ended {
        Ok(Ended::Detached) => ("detached; the VM goes on".to_owned(), Exit::Success),
        Ok(Ended::WithTheVm) => ("the VM has ended".to_owned(), Exit::Success),
        Ok(Ended::NobodyReads) => return Exit::Success,
        Ok(Ended::Signal(exit)) => ("detached by a signal; the VM goes on".to_owned(), exit),
        Err(error) => (chain(&error), Exit::from(&error)),
    };
    let fresh_line = if io::stderr().is_terminal() { "\r\n" } else { "" };
    output::print_error(fresh_line);
    output::complain(&sentence);
    exit
}

async fn attach(args: &AttachArgs) -> Result<Ended, ClientError> {
    let client = Client::new(&args.instance.socket);
    // From here on these signals do not end the process before the terminal is put back.
    let signalled = stop_signal().map_err(ClientError::Here)?;
    let mut resized = signal(SignalKind::window_change()).map_err(ClientError::Here)?;

    let size = terminal::window_size(io::stdout());
    let screenful = size.map_or(SCREENFUL, |size| size.rows.into());
    let connection = client.attach(if args.no_history { 0 } else { screenful }).await?;
    if let Some(size) = size {
        client.resize(size).await?;
    }
    let keyboard = Keyboard::open(args).map_err(ClientError::Here)?;
    let (from_vm, to_vm) = tokio::io::split(TokioIo::<Upgraded>::new(connection));
    let sized = async {
        while resized.recv().await.is_some() {
            if let Some(size) = terminal::window_size(io::stdout())
                && let Err(error) = client.resize(size).await
            {
                tracing::debug!(%error, "the guest keeps the size it has");
            }
        }
        pending().await
    };
    Ok(tokio::select! {
        exit = signalled => Ended::Signal(exit),
        ended = type_on(to_vm, keyboard) => ended,
        ended = show(from_vm) => ended,
        ended = sized => ended,
    })
}

/// The first signal that asks us to end.
fn stop_signal() -> io::Result<impl Future<Output = Exit>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => Exit::Terminated,
            _ = hang_up.recv() => Exit::Terminated,
            _ = quit.recv() => Exit::Terminated,
            _ = interrupt.recv() => Exit::Interrupted,
        }
    })
}

/// Our stdin, read by a thread: reading a terminal cannot be waited for in any other way that leaves its mode alone.
struct Keyboard {
    pieces: mpsc::Receiver<Vec<u8>>,
    escape: DetachKey,
    _raw: Option<RawTerminal>,
}

impl Keyboard {
    /// `None` when nothing is to be typed: by wish, or because the terminal's foreground belongs to somebody else.
    fn open(args: &AttachArgs) -> io::Result<Option<Self>> {
        if args.no_stdin || terminal::is_in_the_background(io::stdin()) {
            return Ok(None);
        }
        let raw = RawTerminal::enter(io::stdin());
        let escape = if raw.is_some() { args.escape } else { DetachKey::NONE };
        let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
        thread::Builder::new().name("keyboard".into()).spawn(move || {
            let mut buffer = [0; PIECE_BYTES];
            while let Ok(len @ 1..) = io::stdin().lock().read(&mut buffer) {
                if sender.blocking_send(buffer.get(..len).unwrap_or_default().to_vec()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Some(Self { pieces, escape, _raw: raw }))
    }
}

/// Sends what is typed, until the key that detaches. The end of a stdin that is no terminal changes nothing.
async fn type_on(mut to_vm: impl AsyncWrite + Unpin, keyboard: Option<Keyboard>) -> Ended {
    let Some(mut keyboard) = keyboard else { return pending().await };
    while let Some(piece) = keyboard.pieces.recv().await {
        let (typed, detach) = keyboard.escape.split(&piece);
        let sent = async {
            to_vm.write_all(typed).await?;
            to_vm.flush().await
        };
        if detach {
            // The last keys before it are the guest's, if it takes them at once.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(100), sent).await;
            return Ended::Detached;
        }
        if sent.await.is_err() {
            break; // the console's end is what `show` tells
        }
    }
    pending().await
}

/// Shows what the guest writes. A thread does it, so that a terminal that stands still does not keep us from hearing a signal.
async fn show(mut from_vm: impl AsyncRead + Unpin) -> Ended {
    let (pieces, mut to_show) = mpsc::channel::<Vec<u8>>(PIECES_IN_FLIGHT);
    let (done, all_shown) = oneshot::channel();
    let shower = thread::Builder::new().name("screen".into()).spawn(move || {
        while let Some(piece) = to_show.blocking_recv() {
            if output::write_out(&piece).is_err() {
                return;
            }
        }
        let _ = done.send(());
    });
    if let Err(error) = shower {
        output::complain(&format!("there is no thread to show the console: {error}"));
        return Ended::NobodyReads;
    }
    let mut buffer = [0; PIECE_BYTES];
    while let Ok(len @ 1..) = from_vm.read(&mut buffer).await {
        if pieces.send(buffer.get(..len).unwrap_or_default().to_vec()).await.is_err() {
            return Ended::NobodyReads;
        }
    }
    drop(pieces);
    match all_shown.await {
        Ok(()) => Ended::WithTheVm,
        Err(_) => Ended::NobodyReads,
    }
}
