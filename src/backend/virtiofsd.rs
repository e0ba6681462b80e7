//! virtiofsd, the program that serves a directory over vhost-user: found, started, watched and ended by us.

mod child;
mod sandbox;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

use self::child::Child;
pub use self::sandbox::Sandbox;

/// How long one that the user runs may take to have room for our connection.
const PATIENCE: Duration = Duration::from_secs(5);

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
    #[error("nobody serves a share at {}: {source}; {mend}", path.display())]
    Connect {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
        /// What to do.
        mend: String,
    },
    /// The one that the user runs takes no connection.
    #[error(
        "the virtiofsd at {} took no connection for {patience:?}: one virtiofsd serves one VM, so start another, with a \
         socket of its own, for this one",
        path.display()
    )]
    Full {
        /// Its path.
        path: PathBuf,
        /// How long it was given.
        patience: Duration,
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

/// How much is logged of what one share's servers say, one after the other: a guest can make a server complain without end,
/// and has another one started by resetting the device of one that ended.
#[derive(Debug, Clone, Default)]
pub struct Quotes(Arc<AtomicU32>);

impl Quotes {
    const MOST: u32 = 100;

    /// Logs this line, unless there were many.
    pub fn warn(&self, line: &str) {
        match self.count() {
            count if count < Self::MOST => tracing::warn!("{line}"),
            Self::MOST => tracing::warn!("virtiofsd: it goes on, and is not quoted any more"),
            _ => {}
        }
    }

    /// Which line this is, from 1 on.
    fn count(&self) -> u32 {
        let next = |count: u32| Some(count.saturating_add(1));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// One running virtiofsd. It ends when this is dropped.
#[derive(Debug)]
pub struct Virtiofsd {
    child: Child,
}

impl Virtiofsd {
    /// Starts one for `directory`, which locks itself into `sandbox`, and returns it with the connection.
    ///
    /// # Errors
    /// When it is not installed or cannot be started.
    pub fn start(
        directory: &Directory,
        sandbox: Sandbox,
        quotes: &Quotes,
    ) -> Result<(Self, UnixStream), VirtiofsdError> {
        let program = find(std::env::var_os("PATH").as_deref()).ok_or(VirtiofsdError::Missing)?;
        let failed = |source| VirtiofsdError::Start { program: program.clone(), source };
        let (listener, socket) = connected().map_err(failed)?;
        let arguments = arguments(directory, sandbox);
        let child = Child::spawn(&program, &arguments, listener, quotes).map_err(failed)?;
        Ok((Self { child }, socket))
    }

    /// What it said last on stderr. One that is about to end is heard out, for half a second.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        self.child.last_words()
    }
}

/// Connects to one that the user runs.
///
/// # Errors
/// When nobody listens there, or whoever does has no room for us.
pub fn connect(path: &Path) -> Result<UnixStream, VirtiofsdError> {
    connect_within(path, PATIENCE)
}

/// A connection that would have to wait for its place in the queue waits in the kernel without end: we ask again instead.
fn connect_within(path: &Path, patience: Duration) -> Result<UnixStream, VirtiofsdError> {
    let began = Instant::now();
    loop {
        match connect_at_once(path) {
            Ok(socket) => return Ok(socket),
            Err(Errno::EAGAIN | Errno::EINTR) if began.elapsed() < patience => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::EAGAIN) => return Err(VirtiofsdError::Full { path: path.to_owned(), patience }),
            Err(errno) => {
                let (path, source) = (path.to_owned(), io::Error::from(errno));
                let mend = mend(&path, errno);
                return Err(VirtiofsdError::Connect { path, source, mend });
            }
        }
    }
}

fn connect_at_once(path: &Path) -> Result<UnixStream, Errno> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &address)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    Ok(socket)
}

/// What to do about a socket that cannot be connected to.
fn mend(path: &Path, errno: Errno) -> String {
    let shown = path.display();
    let is_socket = fs::metadata(path).is_ok_and(|file| file.file_type().is_socket());
    match errno {
        Errno::ECONNREFUSED if !is_socket => {
            "it is no socket: give the path that virtiofsd has as its `--socket-path`".to_owned()
        }
        Errno::ECONNREFUSED => {
            format!(
                "the virtiofsd that made it has ended, as one does with its VM: start `virtiofsd --socket-path {shown}` again"
            )
        }
        Errno::EACCES | Errno::EPERM => format!(
            "uid {} has to be allowed to write to the socket and to pass through its directories",
            nix::unistd::geteuid()
        ),
        Errno::ENAMETOOLONG => "a socket's path has at most 107 bytes: give it a shorter one".to_owned(),
        _ => format!("start `virtiofsd --socket-path {shown}` first"),
    }
}

fn find(path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    let on_path = path.map(std::env::split_paths).into_iter().flatten().map(|dir| dir.join("virtiofsd"));
    on_path.chain(PLACES.iter().map(PathBuf::from)).find(|program| {
        program.is_file() && nix::unistd::access(program, nix::unistd::AccessFlags::X_OK).is_ok()
    })
}

/// A listening socket that has one connection waiting already, ours. Its name is random: every container of a pod sees the
/// names, and in each of them we may be process 1.
fn connected() -> io::Result<(UnixListener, UnixStream)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let secret = RandomState::new().hash_one(NUMBER.fetch_add(1, Ordering::Relaxed));
    let name = format!("nestling-virtiofsd-{secret:016x}");
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

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("virtiofsd");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_program_is_found_on_path_only_when_it_can_run() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "exit 0");
        assert_eq!(find(Some(dir.path().as_os_str())), Some(program.clone()));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
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
        let child = Child::spawn(&program, &[], listener, &Quotes::default()).unwrap();
        let mut rest = Vec::new();
        let read = socket.read_to_end(&mut rest);
        assert!(read.is_err() || rest.is_empty(), "nobody took the connection");
        assert_eq!(child.last_words().as_deref(), Some("first; no such directory"));
    }

    #[test]
    fn it_gets_the_listening_socket_and_ends_with_us() {
        let dir = tempfile::tempdir().unwrap();
        // Says that the descriptor of its `--fd` is a socket, then does not end by itself.
        let text = "fd=${1#--fd=}; readlink /proc/self/fd/$fd >&2; exec sleep 600";
        let program = script(dir.path(), text);
        let (listener, _socket) = connected().unwrap();
        let child = Child::spawn(&program, &[], listener, &Quotes::default()).unwrap();
        wait_for(&child, "socket:");
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(process.exists());
        drop(child);
        assert!(!process.exists(), "killed and reaped");
    }

    fn wait_for(child: &Child, line: &str) -> String {
        let began = Instant::now();
        loop {
            match child.last_words().as_deref().and_then(|said| said.strip_prefix(line)) {
                Some(rest) => return rest.to_owned(),
                None => assert!(began.elapsed() < Duration::from_secs(10), "{:?}", child.last_words()),
            }
        }
    }

    /// virtiofsd in namespaces is two processes, and the second has the log, too.
    #[test]
    fn whoever_it_started_ends_with_it_and_nobody_waits_for_them() {
        let dir = tempfile::tempdir().unwrap();
        // Orphans become ours, as they are in a container where we are process 1.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        for end in ["exec sleep 600", "exit 1"] {
            let program = script(dir.path(), &format!("sleep 600 & echo started $! >&2; {end}"));
            let (listener, _socket) = connected().unwrap();
            let child = Child::spawn(&program, &[], listener, &Quotes::default()).unwrap();
            let second = wait_for(&child, "started ");
            let began = Instant::now();
            drop(child);
            assert!(began.elapsed() < Duration::from_secs(10), "{end}: {:?}", began.elapsed());
            assert!(!Path::new("/proc").join(&second).exists(), "{end}: it lives on, or nobody reaped it");
        }
    }

    /// Two containers of a pod have one network namespace, and in each the process may have the same number.
    #[test]
    fn its_socket_has_a_name_that_nobody_can_guess() {
        let (listener, _socket) = connected().unwrap();
        let address = listener.local_addr().unwrap();
        let name = String::from_utf8(address.as_abstract_name().unwrap().to_vec()).unwrap();
        assert!(!name.contains(&format!("-{}-", std::process::id())), "{name}");
        let (other, _socket) = connected().unwrap();
        assert_ne!(other.local_addr().unwrap().as_abstract_name(), address.as_abstract_name());
    }

    #[test]
    fn a_socket_that_cannot_be_connected_to_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        drop(UnixListener::bind(at("dead")).unwrap());
        for (path, words) in [
            (at("none"), "No such file"),
            (at("none"), "first"),
            (at("file"), "it is no socket"),
            (dir.path().to_owned(), "it is no socket"),
            (at("dead"), "has ended, as one does with its VM"),
            (at(&"x".repeat(110)), "at most 107 bytes"),
        ] {
            let error = connect(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("nobody serves a share at {}", path.display())), "{error}");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_socket_with_no_room_is_given_up_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("full");
        let _listener = UnixListener::bind(&path).unwrap();
        // Nobody takes them; the kernel has room for so many and no more.
        let mut waiting = Vec::new();
        while let Ok(socket) = connect_at_once(&path) {
            waiting.push(socket);
        }
        let error = connect_within(&path, Duration::from_millis(50)).unwrap_err();
        assert!(
            error.to_string().contains("took no connection for 50ms: one virtiofsd serves one VM"),
            "{error}"
        );
        waiting.truncate(0);
    }

    #[test]
    fn all_servers_of_a_share_together_are_quoted_so_often() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "for i in 1 2 3 4 5 6 7 8 9; do echo line $i >&2; done; exit 1");
        let quotes = Quotes::default();
        for _ in 0..3 {
            let (listener, _socket) = connected().unwrap();
            drop(Child::spawn(&program, &[], listener, &quotes).unwrap());
        }
        assert_eq!(quotes.count(), 3 * 10 + 1, "nine lines and its end, each time");
        quotes.0.store(u32::MAX, Ordering::Relaxed);
        assert_eq!((quotes.count(), quotes.count()), (u32::MAX, u32::MAX), "it does not begin anew");
    }
}
