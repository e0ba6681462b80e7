//! Sockets in memory: a program's end and ours, as bounded as the kernel's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::{Bytes, VolatileSlice};

use crate::backend::vsock::{Direction, Host, Ready, Stream};

/// What the kernel keeps for a reader.
pub(super) const SOCKET_BYTES: usize = 8 << 10;

#[derive(Debug, Default)]
struct Wire {
    to_guest: VecDeque<u8>,
    to_host: VecDeque<u8>,
    /// The program sends no more.
    program_sends_no_more: bool,
    /// The program reads no more.
    program_reads_no_more: bool,
    /// Our end: what was shut, or all of it when it was dropped.
    to_host_ended: bool,
    to_guest_ended: bool,
    dropped: bool,
}

/// A program's end of a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Program(Arc<Mutex<Wire>>);

/// Ours.
#[derive(Debug)]
pub(super) struct End(Program);

impl Program {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap()
    }

    pub(super) fn write(&self, bytes: &[u8]) {
        self.wire().to_guest.extend(bytes);
    }

    pub(super) fn read(&self, most: usize) -> Vec<u8> {
        let mut wire = self.wire();
        let most = most.min(wire.to_host.len());
        wire.to_host.drain(..most).collect()
    }

    pub(super) fn finish_sending(&self) {
        self.wire().program_sends_no_more = true;
    }

    pub(super) fn close(&self) {
        let mut wire = self.wire();
        wire.program_sends_no_more = true;
        wire.program_reads_no_more = true;
        wire.to_host.clear();
    }

    /// There will be nothing more to read.
    pub(super) fn sees_the_end(&self) -> bool {
        let wire = self.wire();
        wire.to_host.is_empty() && (wire.to_host_ended || wire.dropped)
    }

    /// Writing is an error.
    pub(super) fn cannot_write(&self) -> bool {
        let wire = self.wire();
        wire.to_guest_ended || wire.dropped
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.wire().dropped
    }

    pub(super) fn unread_by_guest(&self) -> usize {
        self.wire().to_guest.len()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.wire().dropped = true;
    }
}

impl Stream for End {
    fn read(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut wire = self.0.wire();
        if wire.to_guest.is_empty() {
            let over = wire.program_sends_no_more || wire.to_guest_ended;
            return if over { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let mut done = 0;
        for slice in room {
            let count = slice.len().min(wire.to_guest.len());
            let bytes: Vec<u8> = wire.to_guest.drain(..count).collect();
            slice.write_slice(&bytes, 0).unwrap();
            done += count;
        }
        Ok(done)
    }

    fn write(&mut self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut bytes = Vec::new();
        for slice in data {
            let mut piece = vec![0; slice.len()];
            slice.read_slice(&mut piece, 0).unwrap();
            bytes.extend(piece);
        }
        self.write_bytes(&bytes)
    }

    fn write_bytes(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut wire = self.0.wire();
        assert!(!wire.to_host_ended, "written after its end");
        if wire.program_reads_no_more {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let room = SOCKET_BYTES - wire.to_host.len();
        if room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = room.min(data.len());
        wire.to_host.extend(&data[..count]);
        Ok(count)
    }

    fn read_line(&mut self, line: &mut Vec<u8>, most: usize) -> io::Result<bool> {
        let mut wire = self.0.wire();
        while line.len() < most {
            match wire.to_guest.pop_front() {
                Some(byte) => line.push(byte),
                None if wire.program_sends_no_more => return Err(ErrorKind::UnexpectedEof.into()),
                None => return Ok(false),
            }
            if line.last() == Some(&b'\n') {
                break;
            }
        }
        Ok(true)
    }

    fn shut_down(&mut self, direction: Direction) {
        let mut wire = self.0.wire();
        match direction {
            Direction::ToGuest => wire.to_guest_ended = true,
            Direction::ToHost => wire.to_host_ended = true,
        }
    }
}

/// Programs that serve ports, and everybody's events.
#[derive(Debug, Default)]
pub(super) struct PairHost {
    served: BTreeSet<u32>,
    /// Those the guest was connected to, the newest last.
    pub(super) programs: Vec<Program>,
    watched: BTreeMap<u64, (Program, bool)>,
    pub(super) out_of_descriptors: bool,
}

impl PairHost {
    /// A program serves this port.
    pub(super) fn serve(&mut self, port: u32) {
        self.served.insert(port);
    }

    /// A program that connects: its end, and ours.
    pub(super) fn pair() -> (Program, End) {
        let program = Program::default();
        (program.clone(), End(program))
    }

    /// What is so now; more than the kernel would tell, which tells of changes.
    pub(super) fn events(&mut self) -> Vec<(u64, Ready)> {
        self.watched.retain(|_, (program, _)| !program.is_dropped());
        let ready = |program: &Program, room: bool| {
            let wire = program.wire();
            let hung_up = wire.program_reads_no_more && wire.program_sends_no_more;
            let readable = !wire.to_guest.is_empty() || wire.program_sends_no_more;
            Ready { readable, writable: room && wire.to_host.len() < SOCKET_BYTES, hung_up }
        };
        self.watched.iter().map(|(&id, (program, room))| (id, ready(program, *room))).collect()
    }
}

impl Host for PairHost {
    type Stream = End;

    fn connect(&mut self, port: u32, _from: u32) -> io::Result<End> {
        if self.out_of_descriptors {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        if !self.served.contains(&port) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (program, end) = Self::pair();
        self.programs.push(program);
        Ok(end)
    }

    fn watch(&mut self, stream: &End, id: u64) -> io::Result<()> {
        self.watched.insert(id, (stream.0.clone(), false));
        Ok(())
    }

    fn watch_room(&mut self, _stream: &End, id: u64, wanted: bool) {
        self.watched.get_mut(&id).unwrap().1 = wanted;
    }
}
