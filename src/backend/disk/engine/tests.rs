use std::collections::HashMap;
use std::path::Path;

use super::super::{Access, CompositeDisk, Image, Partition, RawDisk};
use super::*;

const MIB: u64 = 1 << 20;

fn raw(path: &Path, access: Access) -> Arc<dyn Disk> {
    Arc::new(RawDisk::open(path, access).unwrap())
}

fn image(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn both(disk: &Arc<dyn Disk>) -> [Engine; 2] {
    let uring = Engine::new(disk, Io::Uring, 8).expect("this machine's kernel has io_uring");
    assert_eq!(uring.name(), "io_uring");
    let threads = Engine::new(disk, Io::Threads, 8).unwrap();
    assert_eq!(threads.name(), "threads");
    [uring, threads]
}

/// A request on memory that lives until the end of the test.
fn request(tag: u64, operation: Operation, offset: u64, memory: &mut [u8]) -> Request {
    let buffers = Buffers::of_slice(memory);
    // SAFETY: every test drains or drops its engine before the memory goes.
    let buffers = unsafe { buffers.outlive() };
    Request { tag, operation, offset, bytes: buffers.len(), buffers }
}

fn bare(tag: u64, operation: Operation, offset: u64, bytes: u64) -> Request {
    Request { tag, operation, offset, bytes, buffers: Buffers::default() }
}

fn results(engine: &mut Engine) -> HashMap<u64, io::Result<u64>> {
    let mut all = HashMap::new();
    engine.drain(&mut |tag, result| assert!(all.insert(tag, result).is_none(), "{tag} came twice")).unwrap();
    assert_eq!(engine.in_flight(), 0);
    all
}

const WRITE: Operation = Operation::Write { durable: false };

#[test]
fn many_requests_come_back_with_their_tags() {
    let file = image(MIB);
    let disk = raw(file.path(), Access::WRITE);
    for mut engine in both(&disk) {
        let mut memory: Vec<Vec<u8>> = (0..8_u8).map(|number| vec![number + 1; 4096]).collect();
        for (tag, piece) in (0..).zip(&mut memory) {
            let durable = tag % 2 == 0;
            engine.submit(request(tag, Operation::Write { durable }, tag * 8192, piece)).unwrap();
        }
        assert_eq!(engine.room(), 0);
        let refused = engine.submit(bare(99, Operation::Flush, 0, 0)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let done = results(&mut engine);
        assert_eq!(done.len(), 8);
        assert!(done.values().all(|result| *result.as_ref().unwrap() == 4096));
        engine.submit(bare(7, Operation::Flush, 0, 0)).unwrap();
        assert!(results(&mut engine)[&7].is_ok());
        let mut back = vec![0; 12_288];
        engine.submit(request(1, Operation::Read, 8192, &mut back)).unwrap();
        assert_eq!(*results(&mut engine)[&1].as_ref().unwrap(), 12_288);
        assert_eq!(back, [vec![2; 4096], vec![0; 4096], vec![3; 4096]].concat());
        disk.write_zeroes(0, MIB, true).unwrap();
    }
}

#[test]
fn what_goes_wrong_comes_back_as_an_error_of_that_request() {
    let file = image(MIB);
    let disk = raw(file.path(), Access::READ);
    file.as_file().set_len(MIB / 2).unwrap();
    for mut engine in both(&disk) {
        let mut memory = vec![vec![1; 512]; 5];
        let mut pieces = memory.iter_mut();
        let mut piece = || pieces.next().unwrap();
        engine.submit(request(1, WRITE, 0, piece())).unwrap();
        engine.submit(request(2, Operation::Read, MIB, piece())).unwrap();
        engine.submit(request(3, Operation::Read, u64::MAX, piece())).unwrap();
        engine.submit(request(4, Operation::Read, MIB / 2, piece())).unwrap();
        engine.submit(bare(5, Operation::Discard, 0, 512)).unwrap();
        engine.submit(request(6, Operation::Read, 0, piece())).unwrap();
        let done = results(&mut engine);
        let kind = |tag| done[&tag].as_ref().unwrap_err().kind();
        assert_eq!(kind(1), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!((kind(2), kind(3)), (io::ErrorKind::InvalidInput, io::ErrorKind::InvalidInput));
        assert_eq!(kind(4), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(5), io::ErrorKind::ReadOnlyFilesystem);
        assert!(done[&6].is_ok());
    }
}

/// The kernel stops at the end of the file; what is left is begun again and is the error.
#[test]
fn a_transfer_that_the_kernel_cuts_is_gone_on_with() {
    let file = image(MIB);
    let disk = raw(file.path(), Access::READ);
    file.as_file().set_len(4096 + 100).unwrap();
    for mut engine in both(&disk) {
        let mut memory = vec![0xee; 8192];
        engine.submit(request(1, Operation::Read, 0, &mut memory)).unwrap();
        let done = results(&mut engine);
        assert_eq!(done[&1].as_ref().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(memory[..4196].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn an_engine_that_goes_waits_for_its_requests() {
    let file = image(16 * MIB);
    let disk = raw(file.path(), Access::WRITE);
    for mut engine in both(&disk) {
        let mut memory = vec![7; 4 << 20];
        engine.submit(request(1, Operation::Write { durable: true }, 0, &mut memory)).unwrap();
        engine.kick().unwrap();
        drop(engine);
        let mut back = vec![0; 4 << 20];
        disk.read_at(&Buffers::of_slice(&mut back), 0).unwrap();
        assert!(back.iter().all(|byte| *byte == 7));
        disk.write_zeroes(0, 16 * MIB, true).unwrap();
    }
}

#[test]
fn the_event_rings_for_both_kinds_of_completion() {
    let file = image(MIB);
    let disk = raw(file.path(), Access::WRITE);
    for mut engine in both(&disk) {
        for operation in [Operation::Flush, Operation::Discard, Operation::WriteZeroes { unmap: true }] {
            engine.submit(bare(3, operation, 0, 4096)).unwrap();
            engine.kick().unwrap();
            let mut fds = [PollFd::new(engine.event(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, 10_000_u16).unwrap(), 1, "{operation:?}");
            let mut done = 0;
            engine.completions(&mut |_, result| done += usize::from(result.is_ok())).unwrap();
            assert_eq!((done, engine.in_flight()), (1, 0));
            let mut fds = [PollFd::new(engine.event(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 0, "it rings once");
        }
    }
}

#[test]
fn a_range_over_two_pieces_of_a_composite_disk_is_done_by_threads() {
    let (first, second) = (image(MIB), image(4096));
    let part = |label: &str, file: &tempfile::NamedTempFile| Partition {
        label: label.into(),
        path: file.path().into(),
        readonly: false,
        said_raw: false,
    };
    let parts = [part("a", &first), part("b", &second)];
    let disk: Arc<dyn Disk> = Arc::new(CompositeDisk::open(&parts, Access::WRITE).unwrap());
    for mut engine in both(&disk) {
        let mut memory = vec![5; 8192];
        engine.submit(request(1, WRITE, 2 * MIB - 4096, &mut memory)).unwrap();
        engine.submit(bare(2, Operation::Flush, 0, 0)).unwrap();
        assert!(results(&mut engine).values().all(Result::is_ok));
        assert_eq!(std::fs::read(second.path()).unwrap(), vec![5; 4096]);
        disk.write_zeroes(2 * MIB - 4096, 8192, false).unwrap();
    }
}

/// The kernel would answer EBADF, for a descriptor that can only be read from.
#[test]
fn a_write_to_a_read_only_partition_is_refused_in_words_by_every_engine() {
    let (first, second) = (image(4096), image(4096));
    let part = |label: &str, file: &tempfile::NamedTempFile, readonly| Partition {
        label: label.into(),
        path: file.path().into(),
        readonly,
        said_raw: false,
    };
    let parts = [part("a", &first, true), part("b", &second, false)];
    let disk: Arc<dyn Disk> = Arc::new(CompositeDisk::open(&parts, Access::WRITE).unwrap());
    for mut engine in both(&disk) {
        let mut memory = vec![5; 4096];
        engine.submit(request(1, WRITE, MIB, &mut memory)).unwrap();
        let refused = results(&mut engine).remove(&1).unwrap().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem, "{}: {refused}", engine.name());
        assert!(refused.to_string().ends_with("is read-only"), "{refused}");
    }
    assert!(std::fs::read(first.path()).unwrap().iter().all(|byte| *byte != 5));
}

#[test]
fn a_format_that_is_no_plain_file_has_threads_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    super::super::create(&super::super::NewImage {
        path: path.clone(),
        format: super::super::Format::Qcow2,
        size_bytes: Some(MIB),
        backing: None,
        force: false,
    })
    .unwrap();
    let image = Image { path, format: None, access: Access::WRITE, follow_backing: true };
    let disk = image.open().unwrap();
    let engine = Engine::new(&disk, Io::Auto, 4).unwrap();
    assert_eq!((engine.name(), engine.instead_of_uring().is_some()), ("threads", true));
    let refused = Engine::new(&disk, Io::Uring, 4).unwrap_err().to_string();
    assert!(refused.contains("no plain file; leave out io=uring"), "{refused}");
}

/// A seccomp filter for the calling thread: this system call fails with EPERM, as container runtimes have it.
fn forbid(number: libc::c_long) {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, if_not| libc::sock_filter { code, jt: 0, jf: if_not, k };
    let mut filter = [
        step(LOAD_NUMBER, 0, 0),
        step(IF_EQUAL, number as u32, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a flag of this thread.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program and its filter live through the call, which copies them.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

#[test]
fn where_io_uring_is_forbidden_threads_do_the_io_and_the_reason_is_told() {
    let file = image(MIB);
    let disk = raw(file.path(), Access::WRITE);
    for (number, reason) in [
        (libc::SYS_io_uring_setup, "forbidden here, by a seccomp profile or by sysctl"),
        (libc::SYS_io_uring_enter, "it cannot be entered: Operation not permitted"),
        (libc::SYS_io_uring_register, "its probe fails: Operation not permitted"),
    ] {
        let disk = Arc::clone(&disk);
        // The filter goes with the thread.
        let thread = std::thread::spawn(move || {
            forbid(number);
            let refused = Engine::new(&disk, Io::Uring, 4).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
            let mut engine = Engine::new(&disk, Io::Auto, 4).unwrap();
            assert_eq!(engine.name(), "threads");
            assert!(engine.instead_of_uring().unwrap().contains(reason));
            let mut memory = vec![1; 512];
            engine.submit(request(1, WRITE, 0, &mut memory)).unwrap();
            assert!(results(&mut engine)[&1].is_ok());
        });
        thread.join().unwrap();
    }
}
