use std::io::Write;

use vm_memory::VolatileSlice;

use super::*;

fn image(bytes: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0x5a; bytes]).unwrap();
    file
}

fn read(disk: &RawDisk, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut back = vec![0; bytes];
    disk.read_at(&Buffers::of_slice(&mut back), offset).map(|()| back)
}

#[test]
fn scattered_buffers_are_written_and_read_back() {
    let image = image(4096);
    let disk = RawDisk::open(image.path(), Access::WRITE).unwrap();
    let mut first = [1_u8; 100];
    let mut second = [2_u8; 412];
    let buffers = [VolatileSlice::from(&mut first[..]), VolatileSlice::from(&mut second[..])];
    disk.write_at(&Buffers::of(&buffers), 512).unwrap();
    let back = read(&disk, 256, 1024).unwrap();
    assert_eq!(back[..256], [0x5a; 256]);
    assert_eq!(back[256..356], [1; 100]);
    assert_eq!(back[356..768], [2; 412]);
    for (offset, bytes) in [(4096, 512), (u64::MAX, 1), (0, 4097)] {
        assert_eq!(read(&disk, offset, bytes).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn an_image_that_somebody_cut_off_is_an_error_and_not_zeroes() {
    let image = image(4096);
    let disk = RawDisk::open(image.path(), Access::READ).unwrap();
    image.as_file().set_len(1024).unwrap();
    assert_eq!(read(&disk, 1024, 512).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(disk.reread_size().unwrap(), 1024);
    assert_eq!(read(&disk, 1024, 512).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn one_writer_or_many_readers() {
    let image = image(512);
    let writer = RawDisk::open(image.path(), Access::WRITE).unwrap();
    for access in [Access::WRITE, Access::READ] {
        assert!(matches!(RawDisk::open(image.path(), access), Err(DiskError::Locked { .. })));
    }
    drop(writer);
    let _reader = RawDisk::open(image.path(), Access::READ).unwrap();
    let _another = RawDisk::open(image.path(), Access::READ).unwrap();
    assert!(matches!(RawDisk::open(image.path(), Access::WRITE), Err(DiskError::Locked { .. })));
}

#[test]
fn what_is_not_a_disk_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.img");
    let text = |result: Result<RawDisk, DiskError>| result.unwrap_err().to_string();
    assert!(text(RawDisk::open(&missing, Access::READ)).contains("missing.img"));
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [directory.path(), &fifo, Path::new("/dev/null")] {
        assert!(text(RawDisk::open(path, Access::READ)).contains("neither"));
    }
    assert!(text(RawDisk::open(image(511).path(), Access::READ)).contains("511 bytes"));
}

#[test]
fn nothing_is_changed_through_a_read_only_disk() {
    let image = image(4096);
    let disk = RawDisk::open(image.path(), Access::READ).unwrap();
    let mut data = [0; 512];
    let results = [
        disk.write_at(&Buffers::of_slice(&mut data), 0),
        disk.discard(0, 512),
        disk.write_zeroes(0, 512, true),
        disk.grow(8192).map(drop),
    ];
    for result in results {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
    assert_eq!(std::fs::read(image.path()).unwrap(), vec![0x5a; 4096]);
}

#[test]
fn a_discard_gives_space_back_and_zeroes_stay_zeroes() {
    use std::os::unix::fs::MetadataExt;
    let image = image(1 << 20);
    let disk = RawDisk::open(image.path(), Access::WRITE).unwrap();
    disk.flush().unwrap();
    let before = image.path().metadata().unwrap().blocks();
    disk.discard(0, 512 << 10).unwrap();
    assert!(image.path().metadata().unwrap().blocks() <= before / 2 + 16, "the space is given back");
    assert_eq!(disk.next_data(0).unwrap(), Some(512 << 10..1 << 20));
    disk.write_zeroes(512 << 10, 1024, false).unwrap();
    disk.write_zeroes((512 << 10) + 1024, 1024, true).unwrap();
    assert_eq!(read(&disk, 512 << 10, 2048).unwrap(), vec![0; 2048]);
    assert_eq!(read(&disk, (512 << 10) + 2048, 512).unwrap(), vec![0x5a; 512]);
    disk.zero_by_hand((512 << 10) + 2048, 130 << 10).unwrap();
    assert_eq!(read(&disk, (512 << 10) + 2048, 130 << 10).unwrap(), vec![0; 130 << 10]);
}

#[test]
fn a_file_grows_and_never_shrinks() {
    let image = image(4096);
    let disk = RawDisk::open(image.path(), Access::WRITE).unwrap();
    assert_eq!(disk.grow(8192 + 100).unwrap(), 8192);
    assert_eq!(disk.grow(512).unwrap(), 8192);
    assert_eq!(read(&disk, 4096, 4096).unwrap(), vec![0; 4096]);
    image.as_file().set_len(12_288).unwrap();
    assert_eq!(disk.size_bytes(), 8192);
    assert_eq!(disk.reread_size().unwrap(), 12_288);
}

/// tmpfs (where /dev/shm is) has had no O_DIRECT before Linux 6.6; the directory of the tests may have it or not. Either
/// the disk works with any alignment, or it says why not.
#[test]
fn direct_io_works_with_any_alignment_or_is_refused_by_name() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = directory.path().join("direct.img");
    std::fs::write(&path, vec![0x5a; 64 << 10]).unwrap();
    let disk = match RawDisk::open(&path, Access { readonly: false, direct: true }) {
        Ok(disk) => disk,
        Err(error) => {
            assert!(error.to_string().contains("has no O_DIRECT: leave out direct=true"), "{error}");
            return;
        }
    };
    assert!(disk.description().contains("direct"));
    let block = u64::from(disk.block_bytes());
    let mut memory = vec![0; 32 << 10];
    for (offset, start, bytes) in [(0, 0, 4096), (512, 1, 512), (block, 3, 8192), (1536, 512, 5 * 512)] {
        memory.fill(offset as u8 | 1);
        let piece = &mut memory[start..start + bytes];
        disk.write_at(&Buffers::of_slice(piece), offset).unwrap();
        memory.fill(0);
        let piece = &mut memory[start..start + bytes];
        disk.read_at(&Buffers::of_slice(piece), offset).unwrap();
        assert!(piece.iter().all(|byte| *byte == offset as u8 | 1), "{offset} {start} {bytes}");
    }
    disk.flush().unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[63 << 10..], vec![0x5a; 1024]);
}
