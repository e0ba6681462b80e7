//! Runs `nestling` as a user does: the command, its console on a pipe, its socket.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use serde_json::Value;

/// No guest here needs this long, even in an emulated CPU on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// One of the kernels every test can boot, with its initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Debian61,
    Debian612,
    Nestling,
}

impl Kernel {
    pub(crate) const ALL: [Self; 3] = [Self::Debian61, Self::Debian612, Self::Nestling];

    fn directory(self) -> PathBuf {
        assets().join(match self {
            Self::Debian61 => "debian-6.1",
            Self::Debian612 => "debian-6.12",
            Self::Nestling => "nestling",
        })
    }

    pub(crate) fn vmlinux(self) -> PathBuf {
        self.directory().join("vmlinux")
    }

    pub(crate) fn bz_image(self) -> PathBuf {
        self.directory().join("bzImage")
    }

    pub(crate) fn initramfs(self) -> PathBuf {
        self.directory().join("initramfs.cpio")
    }

    /// The initramfs that has the probe, mkfs.ext4 and the modules of every device besides. It loads what the usual one
    /// does; the rest is loaded by name: `probe load NAME…`.
    pub(crate) fn devices(self) -> PathBuf {
        self.directory().join("devices.cpio")
    }

    /// What `uname -r` says in it.
    pub(crate) fn release(self) -> String {
        std::fs::read_to_string(self.directory().join("release")).unwrap().trim().to_owned()
    }
}

/// Where kernels, initramfs and the `nestling` under test are: the same path on the host and in the node.
pub(crate) fn assets() -> PathBuf {
    let path = std::env::var_os("NESTLING_ASSETS").expect("NESTLING_ASSETS is not set: run `make test`");
    PathBuf::from(path)
}

/// What a pipe has said so far.
#[derive(Debug, Default)]
struct Heard {
    text: Mutex<(String, bool)>,
    more: Condvar,
}

impl Heard {
    fn listen(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let heard = Arc::new(Self::default());
        let listener = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = pipe.read(&mut buffer) {
                listener.text.lock().unwrap().0.push_str(&String::from_utf8_lossy(&buffer[..len]));
                listener.more.notify_all();
            }
            listener.text.lock().unwrap().1 = true;
            listener.more.notify_all();
        });
        heard
    }

    /// Waits until `done` says so or the pipe closes.
    fn until(&self, done: impl Fn(&str) -> bool) -> bool {
        let state = self.text.lock().unwrap();
        let waiting = |state: &mut (String, bool)| !done(&state.0) && !state.1;
        let (state, _) = self.more.wait_timeout_while(state, PATIENCE, waiting).unwrap();
        done(&state.0)
    }

    fn all(&self) -> String {
        let state = self.text.lock().unwrap();
        let (state, timeout) = self.more.wait_timeout_while(state, PATIENCE, |state| !state.1).unwrap();
        assert!(!timeout.timed_out(), "the output never ended:\n{}", state.0);
        state.0.clone()
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap().0.clone()
    }
}

/// A running `nestling run`.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Heard>,
    log: Arc<Heard>,
    directory: tempfile::TempDir,
}

/// A `nestling run` that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    /// The guest's console.
    pub(crate) console: String,
    /// Nestling's own log.
    pub(crate) log: String,
    /// The last status it left on disk.
    pub(crate) status: Value,
}

impl Vm {
    /// Starts `nestling run` with these arguments and a socket of its own.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = nestling();
        // As a careless parent leaves it: every signal blocked. SIGTERM has to work all the same.
        // SAFETY: between fork and exec this makes one system call.
        unsafe {
            command.pre_exec(|| Ok(SigSet::all().thread_block()?));
        }
        let mut child = command
            .arg("run")
            .args(["--socket".as_ref(), directory.path().join("sock").as_os_str()])
            .args(["--status-file".as_ref(), directory.path().join("status.json").as_os_str()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let console = Heard::listen(child.stdout.take().unwrap());
        let log = Heard::listen(child.stderr.take().unwrap());
        Self { stdin: child.stdin.take(), child, console, log, directory }
    }

    /// Starts `kernel` with its initramfs and a shell script as the workload.
    pub(crate) fn start_script(kernel: Kernel, arguments: &[&str], script: &str) -> Self {
        Self::start_shell(kernel, &kernel.initramfs(), arguments, script)
    }

    /// The same with [`Kernel::devices`]. A script has no double quotes, for the kernel's command line keeps it in such;
    /// all lines together fit 2048 bytes.
    pub(crate) fn start_devices(kernel: Kernel, arguments: &[&str], script: &str) -> Self {
        Self::start_shell(kernel, &kernel.devices(), arguments, script)
    }

    fn start_shell(kernel: Kernel, initramfs: &Path, arguments: &[&str], script: &str) -> Self {
        assert!(!script.contains('"'), "the kernel's command line cannot carry {script}");
        let vmlinux = kernel.vmlinux();
        let images = ["--kernel", vmlinux.to_str().unwrap(), "--initrd", initramfs.to_str().unwrap()];
        let workload = ["--", "/bin/sh", "-c", script];
        Self::start(&[&images, arguments, &workload].concat())
    }

    /// Waits for a text on the guest's console.
    pub(crate) fn expect(&self, text: &str) {
        if !self.console.until(|console| console.contains(text)) {
            panic!("no {text:?} on the console:\n{}\nlog:\n{}", self.console.so_far(), self.log.so_far());
        }
    }

    /// What the guest's console has said so far.
    pub(crate) fn said(&self) -> String {
        self.console.so_far()
    }

    /// Types a line on the guest's console.
    pub(crate) fn type_line(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Asks the instance through its socket, by the `nestling` command.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        let socket = self.socket();
        nestling().args(arguments).args(["--socket".as_ref(), socket.as_os_str()]).output().unwrap()
    }

    /// The status now.
    pub(crate) fn status(&self) -> Value {
        let output = self.ask(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until the status says so.
    pub(crate) fn await_status(&self, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            if done(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the status never said {what}: {status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The socket's path.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// The process id of `nestling run`.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Ends the VMM as a crash or the kernel's OOM killer does, without a last word; what the guest had said.
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "it had ended before: {status}");
        self.console.all()
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Ended {
        let (console, log) = (self.console.all(), self.log.all());
        let code = self.child.wait().unwrap().code();
        let left = std::fs::read(self.directory.path().join("status.json")).unwrap_or_default();
        let status = serde_json::from_slice(&left).unwrap_or(Value::Null);
        Ended { code, console, log, status }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Fails with everything the run said unless it ended as expected.
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(self.code, Some(code), "log:\n{}\nconsole:\n{}", self.log, self.console);
    }

    /// Fails unless the guest said this.
    #[track_caller]
    pub(crate) fn assert_console(&self, text: &str) {
        assert!(self.console.contains(text), "no {text:?} in:\n{}\nlog:\n{}", self.console, self.log);
    }

    /// Fails unless the shell script came to its end, and said so with its last command `echo ALL DONE`.
    #[track_caller]
    pub(crate) fn assert_all_done(&self) {
        self.assert_code(0);
        self.assert_console("ALL DONE\r\n");
    }

    /// Exits to user space, all together.
    pub(crate) fn exits(&self) -> u64 {
        self.status["exits_total"].as_u64().unwrap_or_else(|| panic!("no exits in {:#}", self.status))
    }
}

/// The command under test, with the tests' programs on its PATH: virtiofsd is one of them.
pub(crate) fn nestling() -> Command {
    let bin = assets().join("bin");
    let mut command = Command::new(bin.join("nestling"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path))).unwrap();
    command.env("PATH", path);
    command
}

/// A disk image of `sectors` sectors, each filled with its own number.
pub(crate) fn numbered_disk(directory: &Path, sectors: u32) -> PathBuf {
    let path = directory.join("disk.img");
    let sector = |number: u32| number.to_le_bytes().repeat(128);
    std::fs::write(&path, (0..sectors).flat_map(sector).collect::<Vec<u8>>()).unwrap();
    path
}
