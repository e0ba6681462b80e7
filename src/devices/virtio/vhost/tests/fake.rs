//! The other half of the protocol, as plain messages: a back end that behaves, and several that do not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Requests by number (the vhost-user protocol's own).
pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_OWNER: u32 = 3;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const SET_VRING_ERR: u32 = 14;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// What a back end does when it is asked `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manners {
    /// Answers everything.
    Good,
    /// Says nothing from this request on.
    SilentAt(u32),
    /// Hangs up instead of an answer.
    GoneAt(u32),
    /// Answers another question.
    WrongAt(u32),
    /// Answers with fewer bytes than an answer has.
    ShortAt(u32),
    /// Answers with more bytes than an answer has.
    LongAt(u32),
    /// Answers, and sends two descriptors along.
    FilesAt(u32),
    /// Says that it failed.
    FailsAt(u32),
}

/// What it offers, and how it behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traits {
    pub(super) features: u64,
    pub(super) queues: u64,
    pub(super) manners: Manners,
}

/// A request with its descriptors.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) number: u32,
    pub(super) body: Vec<u8>,
    pub(super) files: Vec<File>,
}

impl Request {
    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.body[at..at + 8].try_into().unwrap())
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.body[at..at + 4].try_into().unwrap())
    }
}

/// A running back end.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) heard: Arc<Mutex<Vec<Request>>>,
    /// Its end of the socket, to hang up.
    socket: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// Starts one; the other value is our end.
    pub(super) fn start(traits: Traits) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let heard = Arc::default();
        let (socket, log) = (theirs.try_clone().unwrap(), Arc::clone(&heard));
        let thread = std::thread::spawn(move || serve(theirs, traits, &log));
        (Self { heard, socket, thread: Some(thread) }, ours)
    }

    /// The last request of this number, for this queue.
    pub(super) fn last<T>(&self, number: u32, queue: u32, look: impl Fn(&Request) -> T) -> T {
        let heard = self.heard.lock().unwrap();
        look(
            heard.iter().rfind(|request| request.number == number && request.u32(0) & 0xff == queue).unwrap(),
        )
    }

    pub(super) fn count(&self, number: u32) -> usize {
        self.heard.lock().unwrap().iter().filter(|request| request.number == number).count()
    }

    /// It sends us these bytes, unasked.
    pub(super) fn say(&self, bytes: &[u8]) {
        (&self.socket).write_all(bytes).unwrap();
    }

    /// It dies.
    pub(super) fn hang_up(&self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(mut socket: UnixStream, traits: Traits, heard: &Mutex<Vec<Request>>) {
    while let Some((request, flags)) = read(&mut socket) {
        let number = request.number;
        let answer = match number {
            GET_FEATURES => Some(traits.features.to_ne_bytes().to_vec()),
            // MQ and REPLY_ACK, and one that we have not heard of.
            GET_PROTOCOL_FEATURES => Some((0b1001_u64 | 1 << 13).to_ne_bytes().to_vec()),
            GET_QUEUE_NUM => Some(traits.queues.to_ne_bytes().to_vec()),
            // It has served five requests.
            GET_VRING_BASE => Some([request.u32(0).to_ne_bytes(), 5_u32.to_ne_bytes()].concat()),
            _ if flags & NEED_REPLY != 0 => {
                let failed = traits.manners == Manners::FailsAt(number);
                Some(u64::from(failed).to_ne_bytes().to_vec())
            }
            _ => None,
        };
        heard.lock().unwrap().push(request);
        let mut header = [number, VERSION | REPLY, answer.as_ref().map_or(0, Vec::len) as u32];
        match traits.manners {
            Manners::SilentAt(at) if at == number => continue,
            Manners::GoneAt(at) if at == number => return drop(socket.shutdown(std::net::Shutdown::Both)),
            Manners::WrongAt(at) if at == number => header[0] = number + 1,
            _ => {}
        }
        let Some(mut answer) = answer else { continue };
        if traits.manners == Manners::ShortAt(number) {
            answer.truncate(4);
            header[2] = 4;
        }
        if traits.manners == Manners::LongAt(number) {
            answer.extend([0xff; 24]);
            header[2] = answer.len() as u32;
        }
        let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).chain(answer).collect();
        let files = [File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap()];
        let fds = files.each_ref().map(AsRawFd::as_raw_fd);
        let fds = if traits.manners == Manners::FilesAt(number) { &fds[..] } else { &[] };
        if socket.send_with_fds(&[&bytes[..]], fds).is_err() {
            return;
        }
    }
}

/// One request and its flags.
fn read(socket: &mut UnixStream) -> Option<(Request, u32)> {
    let (mut header, mut fds) = ([0; 12], [0; 8]);
    let mut parts = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() }];
    // SAFETY: the only part is `header`, which any bytes may fill.
    let (len, count) = unsafe { socket.recv_with_fds(&mut parts, &mut fds) }.ok()?;
    if len != header.len() {
        return None;
    }
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(8) as usize];
    socket.read_exact(&mut body).ok()?;
    // SAFETY: the descriptors were received just now and are nobody else's.
    let files = fds[..count].iter().map(|&fd| unsafe { File::from_raw_fd(fd) }).collect();
    Some((Request { number: word(0), body, files }, word(4)))
}
