mod damage;

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// What a tool of QEMU says; a machine without it cannot tell whether our images are right. A test that starts a process at
/// this moment holds what others have open until that process executes its program, and QEMU does not wait for locks.
fn qemu(program: &str, arguments: &[&OsStr]) -> Output {
    for _ in 0..40 {
        let output = Command::new(program).args(arguments).output();
        let output = output.expect("qemu-img and qemu-io check qcow2 images: install the package qemu-utils");
        let errors = String::from_utf8_lossy(&output.stderr);
        // The second is about a measurement for LUKS, on a busy machine.
        if !["Failed to lock byte", "accurate CPU usage"].iter().any(|reason| errors.contains(reason)) {
            return output;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("{program} {arguments:?}: the image stays locked");
}

/// Runs qemu-img, which must succeed, and returns its output.
pub(in super::super) fn qemu_img(arguments: &[&str]) -> String {
    let output = qemu("qemu-img", &arguments.iter().map(OsStr::new).collect::<Vec<_>>());
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    text
}

/// Clusters that nobody uses may be left over (exit code 3), and nothing else may be wrong.
pub(in super::super) fn qemu_img_sound_but_for_leaks(path: &Path) {
    let output = qemu("qemu-img", &["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn qemu_io(path: &Path, command: &str) {
    let arguments = ["-f".as_ref(), "qcow2".as_ref(), "-c".as_ref(), command.as_ref(), path.as_os_str()];
    let output = qemu("qemu-io", &arguments);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn made(directory: &TempDir, name: &str, size: &str, more: &[&str]) -> PathBuf {
    let path = directory.path().join(name);
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    arguments.extend(more);
    arguments.extend([text(&path), size]);
    qemu_img(&arguments);
    path
}

fn read(disk: &dyn Disk, offset: u64, bytes: usize) -> Vec<u8> {
    let mut back = vec![0xee; bytes];
    disk.read_at(&Buffers::of_slice(&mut back), offset).unwrap();
    back
}

fn write(disk: &dyn Disk, offset: u64, value: u8, bytes: usize) {
    disk.write_at(&Buffers::of_slice(&mut vec![value; bytes]), offset).unwrap();
}

fn refusal(path: &Path) -> String {
    Qcow2Disk::open(path, Access::WRITE, true).unwrap_err().to_string()
}

#[test]
fn what_qemu_wrote_is_read_and_what_we_write_is_sound() {
    let directory = tempfile::tempdir().unwrap();
    for (name, options) in [("v3", "compat=1.1"), ("v2", "compat=0.10"), ("small", "cluster_size=512")] {
        let path = made(&directory, name, "8M", &["-o", options]);
        qemu_io(&path, "write -P 0x11 100k 300k");
        let disk = Qcow2Disk::open(&path, Access::WRITE, true).unwrap();
        assert_eq!(disk.size_bytes(), 8 << 20);
        assert_eq!(read(&disk, 100 << 10, 300 << 10), vec![0x11; 300 << 10]);
        assert_eq!(read(&disk, 0, 100 << 10), vec![0; 100 << 10]);
        assert_eq!(disk.next_data(0).unwrap().unwrap().start / (128 << 10), 0);
        write(&disk, 512, 0x22, 3 << 20);
        disk.write_zeroes(1 << 20, 200 << 10, true).unwrap();
        disk.write_zeroes((2 << 20) + 512, 512, false).unwrap();
        disk.discard(2 << 20, 512).unwrap();
        disk.flush().unwrap();
        drop(disk);
        qemu_img(&["check", "-q", text(&path)]);
        qemu_io(&path, "read -P 0x22 512 1048064");
        qemu_io(&path, "read -P 0 1M 200k");
        qemu_io(&path, "read -P 0 2097664 512");
        qemu_io(&path, "read -P 0x22 2098176 1047552");
    }
}

#[test]
fn compressed_clusters_and_internal_snapshots_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let plain = made(&directory, "plain.qcow2", "4M", &[]);
    qemu_io(&plain, "write -P 0x33 1M 1M");
    let packed = directory.path().join("packed.qcow2");
    qemu_img(&["convert", "-c", "-O", "qcow2", text(&plain), text(&packed)]);
    qemu_img(&["snapshot", "-c", "before", text(&packed)]);
    let disk = Qcow2Disk::open(&packed, Access::WRITE, true).unwrap();
    assert_eq!(read(&disk, 1 << 20, 1 << 20), vec![0x33; 1 << 20]);
    write(&disk, 1 << 20, 0x44, 4096);
    disk.flush().unwrap();
    drop(disk);
    qemu_img(&["check", "-q", text(&packed)]);
    qemu_io(&packed, "read -P 0x44 1M 4k");
    qemu_img(&["snapshot", "-a", "before", text(&packed)]);
    qemu_io(&packed, "read -P 0x33 1M 1M");
}

#[test]
fn many_images_share_one_base_and_a_base_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base.img");
    fs::write(&base, vec![0x55; 1 << 20]).unwrap();
    let overlay = |name: &str| made(&directory, name, "2M", &["-b", "base.img", "-F", "raw"]);
    let (first, second) = (overlay("first.qcow2"), overlay("second.qcow2"));
    let one = Qcow2Disk::open(&first, Access::WRITE, true).unwrap();
    let two = Qcow2Disk::open(&second, Access::WRITE, true).unwrap();
    write(&one, 4096, 0x66, 512);
    assert_eq!(read(&one, 4096, 1024), [[0x66; 512], [0x55; 512]].concat());
    assert_eq!(read(&two, 4096, 1024), vec![0x55; 1024]);
    assert_eq!(read(&two, 1 << 20, 512), vec![0; 512], "beyond the base");
    assert!(one.description().starts_with("qcow2, 2097152 bytes, 1 backing file"));
    drop((one, two));
    assert_eq!(fs::read(&base).unwrap(), vec![0x55; 1 << 20]);

    let writer = super::super::RawDisk::open(&base, Access::WRITE).unwrap();
    let refused = refusal(&first);
    assert!(refused.contains("backing file of") && refused.contains("base.img is in use"), "{refused}");
    drop(writer);
    let denied = Qcow2Disk::open(&first, Access::WRITE, false).unwrap_err().to_string();
    assert!(denied.contains("backing=deny"), "{denied}");
}

#[test]
fn clusters_smaller_than_a_direct_access_are_only_read() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = made(&directory, "a.qcow2", "1M", &["-o", "cluster_size=512"]);
    // However far it goes, the last cluster is read with what would be behind it.
    for written in (1..=9_u8).chain([200]) {
        qemu_io(&path, &format!("write -P {written} {}k 512", u64::from(written) * 2));
        let disk = match Qcow2Disk::open(&path, Access { readonly: true, direct: true }, true) {
            Ok(disk) => disk,
            Err(error) => return assert!(error.to_string().contains("has no O_DIRECT"), "{error}"),
        };
        for value in (1..=9).chain([200]).take_while(|value| *value <= written) {
            assert_eq!(read(&disk, u64::from(value) << 11, 512), [value; 512], "{written} {value}");
        }
    }
    // A file system may take 512 bytes; most take a page.
    if let Err(error) = Qcow2Disk::open(&path, Access { readonly: false, direct: true }, true) {
        let error = error.to_string();
        assert!(
            error.contains("has clusters of 512 bytes") && error.contains("leave out direct=true"),
            "{error}"
        );
    }
}

#[test]
fn direct_io_works_with_any_alignment() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = made(&directory, "a.qcow2", "1M", &[]);
    let disk = match Qcow2Disk::open(&path, Access { readonly: false, direct: true }, true) {
        Ok(disk) => disk,
        Err(error) => {
            assert!(error.to_string().contains("has no O_DIRECT: leave out direct=true"), "{error}");
            return;
        }
    };
    assert_eq!(disk.description(), "qcow2, 1048576 bytes, direct");
    write(&disk, 512, 3, 70_000 / 512 * 512);
    disk.flush().unwrap();
    assert_eq!(read(&disk, 0, 1024), [[0; 512], [3; 512]].concat());
    drop(disk);
    qemu_img(&["check", "-q", text(&path)]);
}

#[test]
fn an_image_open_elsewhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = made(&directory, "a.qcow2", "1M", &[]);
    let _open = Qcow2Disk::open(&path, Access::WRITE, true).unwrap();
    assert!(refusal(&path).contains("in use"));
}

#[test]
fn an_image_grows_without_showing_more_of_its_base() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("base.img"), vec![0x55; 4 << 20]).unwrap();
    let path = made(&directory, "a.qcow2", "1M", &["-b", "base.img", "-F", "raw"]);
    let disk = Qcow2Disk::open(&path, Access::WRITE, true).unwrap();
    assert_eq!(disk.grow((3 << 20) + 1).unwrap(), 3 << 20);
    assert_eq!(disk.grow(1 << 20).unwrap(), 3 << 20);
    assert_eq!(read(&disk, (1 << 20) - 512, 1024), [[0x55; 512], [0; 512]].concat());
    drop(disk);
    qemu_img(&["check", "-q", text(&path)]);
    qemu_io(&path, "read -P 0 1M 2M");
}

#[test]
fn what_is_not_supported_is_refused_in_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let data = format!("data_file={}", text(&directory.path().join("data")));
    let plain = |name| made(&directory, name, "1M", &[]);
    let encrypted = directory.path().join("luks.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=password",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        text(&encrypted),
        "1M",
    ]);
    let patched = |name: &'static str, at: usize, bytes: &[u8]| {
        let path = plain(name);
        let mut image = fs::read(&path).unwrap();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, image).unwrap();
        path
    };
    for (path, part) in [
        (made(&directory, "data.qcow2", "1M", &["-o", &data]), "keeps its data in another file"),
        (encrypted, "is encrypted"),
        (made(&directory, "sub.qcow2", "1M", &["-o", "extended_l2=on"]), "subclusters"),
        (made(&directory, "zstd.qcow2", "1M", &["-o", "compression_type=zstd"]), "zstd"),
        (patched("dirty", 79, &[1]), "qemu-img check -r all"),
        (patched("corrupt", 79, &[2]), "marked corrupt"),
        (patched("future", 72, &[0x80]), "incompatible bits 0x8000000000000000"),
        (patched("version", 7, &[9]), "version 9"),
        (patched("clusters", 23, &[40]), "2^40"),
        (patched("l1", 36, &[0xff; 4]), "L1 table"),
        (patched("refcounts", 56, &[0xff; 4]), "refcount table"),
        (patched("width", 99, &[7]), "2^7 bits"),
        (patched("uncounted", 0x20000, &[0; 2]), "does not count its own header"),
        (patched("no-counts", 0x10000, &[0; 8]), "does not count its own header"),
        (patched("size", 24, &[0xff; 8]), "larger than any"),
        (patched("magic", 0, b"x"), "does not begin as one"),
    ] {
        let text = refusal(&path);
        assert!(text.contains(part), "{part:?} in {text}");
        assert!(!text.contains('\n') && !text.contains("os error"), "{text}");
    }
}

#[test]
fn counts_of_every_width_are_written() {
    let directory = tempfile::tempdir().unwrap();
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let path = made(&directory, &format!("{bits}"), "1M", &["-o", &format!("refcount_bits={bits}")]);
        let disk = Qcow2Disk::open(&path, Access::WRITE, true).unwrap();
        write(&disk, 0, 1, 200_000 / 512 * 512);
        disk.flush().unwrap();
        drop(disk);
        qemu_img(&["check", "-q", text(&path)]);
    }
}

#[test]
fn a_chain_that_loops_or_is_too_deep_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = |name: &str, base: &str| made(&directory, name, "1M", &["-u", "-b", base, "-F", "qcow2"]);
    let first = base("a", "b");
    base("b", "a");
    assert!(refusal(&first).contains("its own backing file"), "{}", refusal(&first));
    let itself = base("self", "self");
    assert!(refusal(&itself).contains("its own backing file"));
    for layer in 0..17 {
        base(&format!("deep{layer}"), &format!("deep{}", layer + 1));
    }
    made(&directory, "deep17", "1M", &[]);
    assert!(refusal(&directory.path().join("deep0")).contains("is below 16 others"));
    Qcow2Disk::open(&directory.path().join("deep3"), Access::WRITE, true).unwrap();
    for (name, part) in
        [("nbd://host/x", "only files"), ("json:{}", "only files"), ("gone.img", "gone.img cannot be opened")]
    {
        let path = made(&directory, "remote", "1M", &["-u", "-b", name, "-F", "raw"]);
        let text = refusal(&path);
        assert!(text.contains(part), "{name}: {text}");
    }
}

/// The base's format is not said, and its guest has made it begin as a qcow2 image.
#[test]
fn a_base_of_unknown_format_is_not_guessed_by_its_bytes_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    let victim = made(&directory, "victim", "1M", &[]);
    fs::copy(&victim, directory.path().join("base.img")).unwrap();
    let old_style = made(&directory, "a.qcow2", "1M", &["-u", "-b", "base.img", "-F", "raw"]);
    let mut image = fs::read(&old_style).unwrap();
    let at = image.windows(4).position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    image[at..at + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    fs::write(&path, image).unwrap();
    let text = refusal(&path);
    assert!(text.contains("qemu-img rebase -u -F FORMAT -b \"base.img\""), "{text}");
}

/// imago has the refcount of a new L2 table in memory when it enters the table.
#[test]
fn a_table_that_was_not_flushed_is_leaked_by_a_kill_and_not_given_out_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (path, left) = (directory.path().join("a.qcow2"), directory.path().join("left.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "4G"]);
    let disk = Qcow2Disk::open(&path, Access::WRITE, true).unwrap();
    let write = |offset: u64, byte: u8| disk.write_at(&Buffers::of_slice(&mut [byte; 4096]), offset).unwrap();
    for (number, flushed) in [(0, false), (1, false), (1, true), (3, false)] {
        // 512 MiB apart: each has an L2 table of its own.
        write(number << 29, number as u8 + 1);
        if flushed {
            disk.flush().unwrap();
        }
        fs::copy(&path, &left).unwrap();
        qemu_img_sound_but_for_leaks(&left);
    }
    let found = |image: &Path, number: u64| {
        let mut bytes = [0; 4096];
        let disk = Qcow2Disk::open(image, Access::READ, true).unwrap();
        disk.read_at(&Buffers::of_slice(&mut bytes), number << 29).unwrap();
        bytes[0]
    };
    assert_eq!([0, 1].map(|number| found(&left, number)), [1, 2], "what was flushed");
    disk.grow(600 << 30).unwrap();
    write(599 << 30, 9);
    drop(disk);
    qemu_img(&["check", "-q", path.to_str().unwrap()]);
    assert_eq!([0, 1, 3, 599 * 2].map(|number| found(&path, number)), [1, 2, 4, 9]);
}

#[test]
fn an_image_that_is_cut_off_is_no_empty_disk() {
    let directory = TempDir::new().unwrap();
    let path = made(&directory, "cut.qcow2", "16M", &[]);
    Qcow2Disk::open(&path, Access::READ, true).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let refused = Qcow2Disk::open(&path, Access::READ, true).unwrap_err().to_string();
    assert!(refused.contains("it is cut off before its L1 table"), "{refused}");
}
