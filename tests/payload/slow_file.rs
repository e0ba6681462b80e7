//! A file that stops answering when the test wants it to: a FUSE file system of one file (Linux,
//! Documentation/filesystems/fuse.rst; `linux/fuse.h` for the messages), mounted over that file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::NamedTempFile;

const LONG: Duration = Duration::from_secs(30);
/// The largest message: a request's head and its data.
const MESSAGE: usize = (1 << 20) + 4096;
const IN_HEADER: usize = 40;

const SETATTR: u32 = 4;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// Each read and write reaches the server.
const FOPEN_DIRECT_IO: u32 = 1;

/// The file, while it is mounted.
pub(crate) struct SlowFile {
    mounted: NamedTempFile,
    gate: Arc<Gate>,
}

/// Whether requests are answered.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    held: bool,
    closed: bool,
    /// Somebody waits for an answer.
    waiting: bool,
    /// Reads and writes that were answered.
    served: u64,
}

impl SlowFile {
    /// A file with what `content` has.
    pub(crate) fn new(content: NamedTempFile) -> Self {
        let mounted = NamedTempFile::new().unwrap();
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=100644,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("nestling-test"), mounted.path(), Some("fuse"), flags, Some(options.as_str())).unwrap();
        let gate = Arc::new(Gate::default());
        let seen = Arc::clone(&gate);
        std::thread::spawn(move || serve(device, &content, &seen));
        // The kernel learns that there is nothing to be asked when the file is closed: nothing can keep it from waiting for that.
        drop(File::open(mounted.path()).unwrap());
        Self { mounted, gate }
    }

    pub(crate) fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// From now on requests wait; returns when one does.
    pub(crate) fn hold(&self) {
        let mut state = self.gate.state.lock().unwrap();
        (state.held, state.waiting) = (true, false);
        let waited = self.gate.changed.wait_timeout_while(state, LONG, |state| !state.waiting).unwrap();
        assert!(!waited.1.timed_out(), "nobody asks for anything");
    }

    /// Waits until so many reads and writes were answered.
    pub(crate) fn wait_for_use(&self, served: u64) {
        let state = self.gate.state.lock().unwrap();
        let waited =
            self.gate.changed.wait_timeout_while(state, LONG, |state| state.served < served).unwrap();
        assert!(!waited.1.timed_out(), "nobody uses it");
    }

    /// They are answered.
    pub(crate) fn release(&self) {
        self.gate.state.lock().unwrap().held = false;
        self.gate.changed.notify_all();
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        {
            let mut state = self.gate.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (state.held, state.closed) = (false, true);
        }
        self.gate.changed.notify_all();
        // The file system, and with it the server's thread, ends when nobody has the file open any more.
        let _ = umount2(self.mounted.path(), MntFlags::MNT_DETACH);
    }
}

impl Gate {
    /// Waits while the file does not answer; somebody asks.
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting |= state.held;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| state.held && !state.closed).unwrap());
    }

    fn served(&self) {
        self.state.lock().unwrap().served += 1;
        self.changed.notify_all();
    }
}

fn serve(mut device: File, content: &NamedTempFile, gate: &Gate) {
    let mut message = vec![0; MESSAGE];
    loop {
        // A request that was not read yet lets its process die: the kernel waits out one that was, whatever happens.
        let mut asked = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut asked, PollTimeout::NONE);
        gate.pass();
        let Ok(len) = device.read(&mut message) else { return };
        let request = &message[..len];
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (opcode, unique) = (word(4), long(8));
        let answer = match opcode {
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            INIT => Ok(init()),
            GETATTR | SETATTR => Ok(attributes(content)),
            OPEN => Ok([&[0; 8][..], &FOPEN_DIRECT_IO.to_le_bytes(), &[0; 4]].concat()),
            READ => {
                let mut data = vec![0; word(IN_HEADER + 16) as usize];
                let read = content.as_file().read_at(&mut data, long(IN_HEADER + 8)).unwrap();
                data.truncate(read);
                Ok(data)
            }
            WRITE => {
                let data = &request[IN_HEADER + 40..];
                content.as_file().write_all_at(data, long(IN_HEADER + 8)).unwrap();
                Ok([&(data.len() as u32).to_le_bytes()[..], &[0; 4]].concat())
            }
            FSYNC | RELEASE => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = answer.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let len = (16 + body.len()) as u32;
        let header = [&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat();
        // Whoever asked may be gone.
        let _ = device.write(&[header, body].concat());
        if matches!(opcode, READ | WRITE) {
            gate.served();
        }
    }
}

/// `struct fuse_init_out`: version 7.31, data of 1 MiB.
fn init() -> Vec<u8> {
    let mut out = Vec::new();
    for word in [7_u32, 31, 0, 0, 0, 1 << 20, 1] {
        out.extend(word.to_le_bytes());
    }
    out.resize(64, 0);
    out
}

/// `struct fuse_attr_out` of the file.
fn attributes(content: &NamedTempFile) -> Vec<u8> {
    let size = content.as_file().metadata().unwrap().len();
    let mut out = vec![0; 16];
    for long in [1, size, size.div_ceil(512), 0, 0, 0] {
        out.extend(long.to_le_bytes());
    }
    for word in [0, 0, 0, libc::S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0] {
        out.extend(word.to_le_bytes());
    }
    out
}
