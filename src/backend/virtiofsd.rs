//! virtiofsd, the program that serves a directory over vhost-user: found, started, watched and ended by us.

mod child;
mod sandbox;

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use self::child::Child;
pub use self::sandbox::Sandbox;

/// Where packages put it when it is not on PATH.
const PLACES: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/local/bin/virtiofsd"];

/// Why no virtiofsd serves.
#[derive(Debug, thiserror::Error)]
pub enum VirtiofsdError {
    /// It is not installed.
    #[error(
        "a share needs the program virtiofsd, and it is neither on PATH nor in {}: install it (Debian 13: `apt-get install \
         virtiofsd`; elsewhere `cargo install virtiofsd`), or run one yourself and name its socket with `socket=`",
        PLACES.join(", ")
    )]
    Missing,
    /// It cannot be started.
    #[error("{} cannot be started: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The socket of one that the user runs.
    #[error("nobody serves a share at {}: {source}; start `virtiofsd --socket-path {}` first", path.display(), path.display())]
    Connect {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// What the guest's kernel may keep of a share's files (`--cache` of virtiofsd).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cache {
    /// For a second: others on the host may change files.
    #[default]
    Auto,
    /// Nothing but what is mapped.
    Never,
    /// Everything, for ever: nobody else changes files.
    Always,
}

impl Cache {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Never => "never",
            Self::Always => "always",
        }
    }
}

/// A directory to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The directory.
    pub path: PathBuf,
    /// The guest may not write.
    pub readonly: bool,
    /// What the guest's kernel may keep.
    pub cache: Cache,
}

/// One running virtiofsd. It ends when this is dropped.
#[derive(Debug)]
pub struct Virtiofsd {
    child: Child,
}

impl Virtiofsd {
    /// Starts one for `directory`, in as much of a sandbox as this process can give it, and returns it with the connection.
    ///
    /// # Errors
    /// When it is not installed or cannot be started.
    pub fn start(directory: &Directory) -> Result<(Self, UnixStream), VirtiofsdError> {
        let program = find(std::env::var_os("PATH").as_deref()).ok_or(VirtiofsdError::Missing)?;
        let failed = |source| VirtiofsdError::Start { program: program.clone(), source };
        let (listener, socket) = connected().map_err(failed)?;
        let sandbox = Sandbox::possible_here();
        let child = Child::spawn(&program, &arguments(directory, sandbox), listener).map_err(failed)?;
        Ok((Self { child }, socket))
    }

    /// What it said last on stderr.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        self.child.last_line()
    }
}

/// Connects to one that the user runs.
///
/// # Errors
/// When nobody listens there.
pub fn connect(path: &Path) -> Result<UnixStream, VirtiofsdError> {
    UnixStream::connect(path).map_err(|source| VirtiofsdError::Connect { path: path.to_owned(), source })
}

fn find(path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    let on_path = path.map(std::env::split_paths).into_iter().flatten().map(|dir| dir.join("virtiofsd"));
    on_path.chain(PLACES.iter().map(PathBuf::from)).find(|program| {
        program.is_file() && nix::unistd::access(program, nix::unistd::AccessFlags::X_OK).is_ok()
    })
}

/// A listening socket that has one connection waiting already, ours: nobody else can be first.
fn connected() -> io::Result<(UnixListener, UnixStream)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("nestling-virtiofsd-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&address)?;
    let socket = UnixStream::connect_addr(&address)?;
    Ok((listener, socket))
}

fn arguments(directory: &Directory, sandbox: Sandbox) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> =
        vec!["--shared-dir".into(), directory.path.clone().into_os_string()];
    arguments.extend([
        format!("--cache={}", directory.cache.name()).into(),
        format!("--sandbox={}", sandbox.name()).into(),
        "--log-level=warn".into(),
    ]);
    if directory.readonly {
        arguments.push("--readonly".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("virtiofsd");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_program_is_found_on_path_only_when_it_can_run() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "exit 0");
        assert_eq!(find(Some(dir.path().as_os_str())), Some(program.clone()));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(find(Some(dir.path().as_os_str())), Some(program));
    }

    #[test]
    fn what_was_asked_for_is_said_in_its_own_options() {
        let directory = Directory { path: "/data".into(), readonly: true, cache: Cache::Never };
        let expected =
            ["--shared-dir", "/data", "--cache=never", "--sandbox=chroot", "--log-level=warn", "--readonly"];
        assert_eq!(arguments(&directory, Sandbox::Chroot), expected);
    }

    #[test]
    fn its_last_words_are_kept_and_its_end_closes_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "echo first >&2; echo 'no such directory' >&2; exit 1");
        let (listener, mut socket) = connected().unwrap();
        let child = Child::spawn(&program, &[], listener).unwrap();
        let mut rest = Vec::new();
        let read = socket.read_to_end(&mut rest);
        assert!(read.is_err() || rest.is_empty(), "nobody took the connection");
        let began = Instant::now();
        while child.last_line().as_deref() != Some("no such directory") {
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", child.last_line());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn it_gets_the_listening_socket_and_ends_with_us() {
        let dir = tempfile::tempdir().unwrap();
        // Says that the descriptor of its `--fd` is a socket, then does not end by itself.
        let text = "fd=${1#--fd=}; readlink /proc/self/fd/$fd >&2; exec sleep 600";
        let program = script(dir.path(), text);
        let (listener, _socket) = connected().unwrap();
        let child = Child::spawn(&program, &[], listener).unwrap();
        let began = Instant::now();
        while !child.last_line().is_some_and(|line| line.starts_with("socket:")) {
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", child.last_line());
            std::thread::sleep(Duration::from_millis(5));
        }
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(process.exists());
        drop(child);
        assert!(!process.exists(), "killed and reaped");
    }
}
