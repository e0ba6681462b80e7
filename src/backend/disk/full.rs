//! A file system that fills up under a disk, and has room again later.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

const CHUNK: u64 = 64 << 10;
const CHUNKS: u64 = 96;

/// Mounts a tmpfs of 2 MiB here, which the calling thread alone sees.
fn small_file_system(place: &std::path::Path) {
    unshare(CloneFlags::CLONE_NEWNS).expect("this test mounts a file system, which takes root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("size=2m")).unwrap();
}

fn give_room(place: &std::path::Path) {
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_REMOUNT, Some("size=32m")).unwrap();
}

fn write(disk: &dyn Disk, chunk: u64) -> io::Result<()> {
    let mut data = vec![chunk as u8 + 1; CHUNK as usize];
    disk.write_at(&Buffers::of_slice(&mut data), chunk * CHUNK)
}

fn holds(disk: &dyn Disk, chunk: u64) -> bool {
    let mut back = vec![0; CHUNK as usize];
    disk.read_at(&Buffers::of_slice(&mut back), chunk * CHUNK).unwrap();
    back.iter().all(|byte| *byte == chunk as u8 + 1)
}

/// Every chunk has its place in a permutation, so that an image with small clusters has its tables all over.
fn nth(step: u64) -> u64 {
    step * 37 % CHUNKS
}

/// An empty disk; `cluster` is the size of a qcow2 image's clusters. Small ones take many tables.
fn make(path: &std::path::Path, format: Format, cluster: u64) {
    let bytes = CHUNKS * CHUNK;
    if format == Format::Raw {
        let new =
            NewImage { path: path.into(), format, size_bytes: Some(bytes), backing: None, force: false };
        create(&new).unwrap();
    } else {
        let (options, bytes) = (format!("cluster_size={cluster}"), bytes.to_string());
        qcow2::tests::qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            path.to_str().unwrap(),
            &bytes,
        ]);
    }
}

fn fill_up_and_go_on(format: Format, cluster: u64, flush_each: bool) {
    let directory = tempfile::tempdir().unwrap();
    small_file_system(directory.path());
    let path = directory.path().join("a.img");
    make(&path, format, cluster);
    let image =
        Image { path: path.clone(), format: Some(format), access: Access::WRITE, follow_backing: true };
    let disk = image.open().unwrap();
    let mut flushed = Vec::new();
    let mut unsure = Vec::new();
    for step in 0..CHUNKS {
        let done = write(&*disk, nth(step));
        let stable = if flush_each { disk.flush() } else { Ok(()) };
        match (&done, &stable) {
            (Ok(()), Ok(())) => flushed.push(nth(step)),
            (Err(error), _) | (_, Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{format:?}: {error}");
                unsure.push(nth(step));
            }
        }
        if unsure.len() > 5 {
            break;
        }
    }
    assert!(flushed.len() > 10 && unsure.len() > 5, "{} written, {} not", flushed.len(), unsure.len());
    for chunk in &flushed {
        assert!(holds(&*disk, *chunk), "{format:?}: what was written is read while there is no room");
        write(&*disk, *chunk).expect("what has its place needs no room");
    }

    give_room(directory.path());
    for step in 0..CHUNKS {
        write(&*disk, nth(step)).unwrap();
    }
    disk.flush().unwrap();
    drop(disk);
    let disk = image.open().unwrap();
    assert!((0..CHUNKS).all(|chunk| holds(&*disk, chunk)), "{format:?}: all is there after all");
    drop(disk);
    if format == Format::Qcow2 {
        qcow2::tests::qemu_img_sound_but_for_leaks(&path);
    }
}

/// What a kill would leave while nothing more can be written.
fn what_was_flushed_is_in_the_file(format: Format, cluster: u64) {
    let directory = tempfile::tempdir().unwrap();
    small_file_system(directory.path());
    let path = directory.path().join("a.img");
    make(&path, format, cluster);
    let image =
        |path: PathBuf| Image { path, format: Some(format), access: Access::WRITE, follow_backing: true };
    let disk = image(path.clone()).open().unwrap();
    let mut flushed = Vec::new();
    for step in 0..CHUNKS {
        if write(&*disk, nth(step)).is_ok() && disk.flush().is_ok() {
            flushed.push(nth(step));
        }
    }
    let copies = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let left = copies.path().join("left.img");
    std::fs::copy(&path, &left).unwrap();
    drop(disk);
    if format == Format::Qcow2 {
        qcow2::tests::qemu_img_sound_but_for_leaks(&left);
    }
    let found = image(left).open().unwrap();
    assert!(flushed.len() > 10 && flushed.len() < CHUNKS as usize);
    assert!(flushed.iter().all(|chunk| holds(&*found, *chunk)), "{format:?}");
}

/// The mounts go with the thread that made them.
fn on_a_thread(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn a_raw_disk_goes_on_when_there_is_room_again() {
    on_a_thread(|| fill_up_and_go_on(Format::Raw, 0, true));
    on_a_thread(|| what_was_flushed_is_in_the_file(Format::Raw, 0));
}

#[test]
fn a_qcow2_disk_goes_on_when_there_is_room_again() {
    for cluster in [64 << 10, 4096, 512] {
        on_a_thread(move || fill_up_and_go_on(Format::Qcow2, cluster, true));
        on_a_thread(move || fill_up_and_go_on(Format::Qcow2, cluster, false));
        on_a_thread(move || what_was_flushed_is_in_the_file(Format::Qcow2, cluster));
    }
}
