use super::*;

const MIB: u64 = 1 << 20;

struct Files {
    directory: tempfile::TempDir,
    partitions: Vec<Partition>,
}

/// Partitions of these sizes, the first of them read-only.
fn files(sizes: &[u64]) -> Files {
    let directory = tempfile::tempdir().unwrap();
    let partitions = sizes.iter().enumerate().map(|(index, size)| {
        let path = directory.path().join(format!("{index}.img"));
        std::fs::write(&path, vec![index as u8 + 1; *size as usize]).unwrap();
        Partition { label: format!("part-{index}"), path, readonly: index == 0, said_raw: false }
    });
    let partitions = partitions.collect();
    Files { directory, partitions }
}

fn read(disk: &CompositeDisk, offset: u64, bytes: u64) -> Vec<u8> {
    let mut back = vec![0xee; bytes as usize];
    disk.read_at(&Buffers::of_slice(&mut back), offset).unwrap();
    back
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Checks one of the two headers as a partitioning tool does, and returns its entries.
fn check_table(disk: &[u8], own: u64, other: u64) -> Vec<u8> {
    let sector = |number: u64| &disk[(number * SECTOR) as usize..][..SECTOR as usize];
    let header = sector(own);
    assert_eq!(&header[..8], b"EFI PART");
    let size = le(&header[12..16]) as usize;
    let mut zeroed = header[..size].to_vec();
    zeroed[16..20].fill(0);
    assert_eq!(le(&header[16..20]), u64::from(crc32fast::hash(&zeroed)), "the header's checksum");
    assert_eq!((le(&header[24..32]), le(&header[32..40])), (own, other));
    let (first_usable, last_usable) = (le(&header[40..48]), le(&header[48..56]));
    assert_eq!(first_usable, 34);
    let bytes = (le(&header[80..84]) * le(&header[84..88])) as usize;
    let table = disk[(le(&header[72..80]) * SECTOR) as usize..][..bytes].to_vec();
    assert_eq!(le(&header[88..92]), u64::from(crc32fast::hash(&table)), "the table's checksum");
    for entry in table.chunks(128).filter(|entry| entry[..16] != [0; 16]) {
        let (first, last) = (le(&entry[32..40]), le(&entry[40..48]));
        assert!(first_usable <= first && first <= last && last <= last_usable);
        assert_eq!(first * SECTOR % MIB, 0);
    }
    table
}

#[test]
fn both_tables_are_right_and_name_the_files() {
    let files = files(&[MIB + 512, 3 * 512, 2 * MIB]);
    let disk = CompositeDisk::open(&files.partitions, Access::WRITE).unwrap();
    assert_eq!(disk.size_bytes(), (1 + 2 + 1 + 2 + 1) * MIB);
    assert_eq!(disk.description(), "composite, 7340032 bytes, 3 partitions");
    let bytes = read(&disk, 0, disk.size_bytes());
    let last = disk.size_bytes() / SECTOR - 1;
    let table = check_table(&bytes, 1, last);
    assert_eq!(check_table(&bytes, last, 1), table);
    assert_eq!(bytes[446 + 4], 0xee);
    assert_eq!(le(&bytes[446 + 12..446 + 16]), last);
    assert_eq!(bytes[510..512], [0x55, 0xaa]);
    for (index, (start, size)) in
        [(MIB, MIB + 512), (3 * MIB, 3 * 512), (4 * MIB, 2 * MIB)].iter().enumerate()
    {
        let entry = &table[index * 128..][..128];
        assert_eq!((le(&entry[32..40]) * SECTOR, (le(&entry[40..48]) + 1) * SECTOR), (*start, start + size));
        let name: Vec<u16> = entry[56..].chunks(2).map(|unit| le(unit) as u16).collect();
        assert_eq!(String::from_utf16(&name).unwrap().trim_end_matches('\0'), format!("part-{index}"));
        assert_eq!(le(&entry[48..56]) >> 60 & 1, u64::from(index == 0), "read-only");
        assert!(bytes[*start as usize..(start + size) as usize].iter().all(|byte| *byte == index as u8 + 1));
    }
    assert!(bytes[(2 * MIB + 512) as usize..3 * MIB as usize].iter().all(|byte| *byte == 0));
}

#[test]
fn the_same_files_make_the_same_disk_and_others_another() {
    let mut files = files(&[4096, 4096]);
    let head = |partitions: &[Partition]| {
        read(&CompositeDisk::open(partitions, Access::READ).unwrap(), 0, gpt::HEAD_BYTES)
    };
    let before = head(&files.partitions);
    assert_eq!(head(&files.partitions), before);
    files.partitions[1].label = "other".into();
    assert_ne!(head(&files.partitions), before);
    let guids: Vec<&[u8]> = before[1024..].chunks(128).take(2).map(|entry| &entry[16..32]).collect();
    assert_ne!(guids[0], guids[1]);
    assert_eq!(guids[0][7] >> 4, 8, "version 8");
    assert_eq!(guids[0][8] >> 6, 0b10, "the variant of RFC 9562");
}

#[test]
fn only_writable_partitions_can_be_changed() {
    let files = files(&[4096, 4096]);
    let disk = CompositeDisk::open(&files.partitions, Access::WRITE).unwrap();
    assert!(!disk.readonly());
    let mut data = vec![9; 8192];
    for (offset, bytes) in [(0, 512), (MIB, 512), (2 * MIB - 512, 1024), (2 * MIB, 8192), (3 * MIB, 512)] {
        let refused = disk.write_at(&Buffers::of_slice(&mut data[..bytes]), offset).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem, "{offset}");
        let text = refused.to_string();
        assert!(text.contains("0.img is read-only") || text.contains("the partition table"), "{text}");
        assert!(disk.discard(offset, bytes as u64).is_err());
        assert!(disk.write_zeroes(offset, bytes as u64, true).is_err());
    }
    disk.write_at(&Buffers::of_slice(&mut data[..512]), 2 * MIB + 512).unwrap();
    disk.write_zeroes(2 * MIB + 1024, 512, true).unwrap();
    disk.flush().unwrap();
    let expected = [vec![2; 512], vec![9; 512], vec![0; 512], vec![2; 4096 - 1536]].concat();
    assert_eq!(std::fs::read(&files.partitions[1].path).unwrap(), expected);
    assert_eq!(std::fs::read(&files.partitions[0].path).unwrap(), vec![1; 4096]);
    assert!(disk.grow(1 << 30).is_err());
    assert_eq!(disk.next_data(gpt::HEAD_BYTES).unwrap(), Some(MIB..MIB + 4096));
    drop(disk);
    assert!(CompositeDisk::open(&files.partitions, Access::READ).unwrap().readonly());
    assert!(CompositeDisk::open(&files.partitions[..1], Access::WRITE).unwrap().readonly());
}

#[test]
fn a_transfer_within_one_file_has_a_place() {
    let files = files(&[4096, 4096]);
    let disk = CompositeDisk::open(&files.partitions, Access::WRITE).unwrap();
    let mut data = vec![0; 1024];
    let place = |offset, data: &mut [u8]| {
        disk.place(Way::Read, &Buffers::of_slice(data), offset).map(|place| place.offset)
    };
    assert_eq!(place(MIB + 3072, &mut data), Some(3072));
    assert_eq!(place(MIB + 3584, &mut data), None, "it ends in the gap");
    assert_eq!(place(0, &mut data), None);
    assert_eq!(place(u64::MAX, &mut data), None);
    assert!(disk.place(Way::Write, &Buffers::of_slice(&mut data), 2 * MIB).is_some());
    assert!(disk.place(Way::Write, &Buffers::of_slice(&mut data), MIB).is_none(), "read-only");
}

#[test]
fn a_partition_that_looks_like_qcow2_is_refused_unless_it_is_said_to_be_raw() {
    let mut files = files(&[4096, 4096]);
    std::fs::write(&files.partitions[1].path, [b"QFI\xfb".to_vec(), vec![0; 4092]].concat()).unwrap();
    let refused = CompositeDisk::open(&files.partitions, Access::WRITE).unwrap_err().to_string();
    assert!(
        refused.starts_with("the partition part-1: the image ") && refused.contains("nestling disk convert"),
        "{refused}"
    );
    files.partitions[1].said_raw = true;
    CompositeDisk::open(&files.partitions, Access::WRITE).unwrap();
    let named = files.directory.path().join("a.qcow2");
    std::fs::write(&named, [0; 4096]).unwrap();
    files.partitions[1] = Partition { path: named, said_raw: false, ..files.partitions[1].clone() };
    assert!(matches!(
        CompositeDisk::open(&files.partitions, Access::WRITE),
        Err(DiskError::Partition { .. })
    ));
}

#[test]
fn a_composite_disk_is_called_by_all_its_partitions() {
    let files = files(&[4096, 4096]);
    let disk = CompositeDisk::open(&files.partitions, Access::WRITE).unwrap();
    let place = files.directory.path().display();
    assert_eq!(disk.name(), format!("partitions part-0:{place}/0.img:ro, part-1:{place}/1.img"));
}

#[test]
fn what_cannot_be_laid_out_is_refused() {
    let files = files(&[4096, 4096]);
    let refused =
        |partitions: &[Partition]| CompositeDisk::open(partitions, Access::WRITE).unwrap_err().to_string();
    assert!(refused(&[]).contains("no partition"));
    assert!(refused(&vec![files.partitions[0].clone(); 129]).contains("room for 128"));
    let with = |label: &str| Partition { label: label.into(), ..files.partitions[0].clone() };
    assert!(refused(&[with("")]).contains("1 to 36 characters"));
    assert!(refused(&[with(&"x".repeat(37))]).contains("1 to 36 characters"));
    assert!(refused(&[with("a"), with("a")]).contains("\"a\" is there twice"));
    let twice =
        [files.partitions[1].clone(), Partition { label: "again".into(), ..files.partitions[1].clone() }];
    assert!(refused(&twice).contains("the partition again: the disk"), "{}", refused(&twice));
    let missing = Partition { path: files.directory.path().join("gone"), ..with("a") };
    assert!(refused(&[missing]).contains("gone cannot be opened"));
}
