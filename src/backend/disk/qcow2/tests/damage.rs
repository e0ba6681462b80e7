//! Images that are cut off, or whose header and tables lead where they should not. Every case is opened, read, written to,
//! discarded, grown and flushed: nothing may panic, hang, let the file grow beyond measure, or show zeroes where data were.

use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;

/// The size of the test images' disks.
const DISK: u64 = 4 << 20;
/// How long one case may take; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sound image and what its disk holds.
struct Sound {
    name: &'static str,
    image: Vec<u8>,
    disk: Vec<u8>,
}

/// Images of different kinds, all with data in three places.
fn sound() -> Vec<Sound> {
    let kinds: [(&str, &[&str], bool); 6] = [
        ("64 KiB", &["-o", "cluster_size=65536"], false),
        ("4 KiB", &["-o", "cluster_size=4096"], false),
        ("512 B", &["-o", "cluster_size=512"], false),
        ("2 MiB", &["-o", "cluster_size=2097152"], false),
        ("version 2", &["-o", "compat=0.10,cluster_size=4096"], false),
        ("compressed, with a snapshot", &["-o", "cluster_size=4096"], true),
    ];
    let directory = tempfile::tempdir().unwrap();
    let make = |(name, options, packed): (&'static str, &[&str], bool)| {
        let mut path = made(&directory, "made.qcow2", "4M", options);
        for part in ["write -P 0x11 0 300k", "write -P 0x22 1M 64k", "write -P 0x33 4090k 6k"] {
            qemu_io(&path, part);
        }
        if packed {
            let to = directory.path().join("packed.qcow2");
            let arguments =
                ["convert", "-c", "-O", "qcow2", "-o", "cluster_size=4096", text(&path), text(&to)];
            qemu_img(&arguments);
            qemu_img(&["snapshot", "-c", "before", text(&to)]);
            qemu_io(&to, "write -P 0x44 8k 20k");
            path = to;
        }
        let image = fs::read(&path).unwrap();
        let disk = read(&Qcow2Disk::open(&path, Access::WRITE, true).unwrap(), 0, DISK as usize);
        fs::remove_file(path).unwrap();
        Sound { name, image, disk }
    };
    kinds.into_iter().map(make).collect()
}

fn be(image: &[u8], at: u64, bytes: usize) -> u64 {
    image[at as usize..][..bytes].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Where an image's tables and their parts are.
struct Anatomy {
    cluster: u64,
    l1: u64,
    refcounts: u64,
    l2: Vec<u64>,
    blocks: Vec<u64>,
    data: Vec<u64>,
}

impl Anatomy {
    fn of(image: &[u8]) -> Self {
        let cluster = 1 << be(image, 20, 4);
        let (l1, refcounts) = (be(image, 40, 8), be(image, 48, 8));
        let leaves = |at: u64, count: u64| {
            let entries = (0..count).map(move |index| be(image, at + index * 8, 8) & 0x00ff_ffff_ffff_fe00);
            entries.filter(|entry| *entry != 0).collect::<Vec<_>>()
        };
        let l2 = leaves(l1, be(image, 36, 4));
        let blocks = leaves(refcounts, be(image, 56, 4) * cluster / 8);
        let data = l2.iter().flat_map(|table| leaves(*table, cluster / 8)).collect();
        Self { cluster, l1, refcounts, l2, blocks, data }
    }

    /// Places of 8 bytes that lead somewhere, or count something.
    fn entries(&self) -> Vec<u64> {
        let header = [8, 16, 20, 24, 32, 36, 40, 48, 56, 60, 64, 72, 80, 88, 92, 96, 100, 104, 112];
        let mut places = header.to_vec();
        for table in [&[self.l1, self.refcounts][..], &self.l2, &self.blocks].concat() {
            // The first entries, and the last.
            places.extend([0, 8, 16, 24, self.cluster - 8].map(|at| table + at));
        }
        places
    }

    /// Numbers that an entry should not have.
    fn values(&self, end: u64) -> Vec<u64> {
        const COPIED: u64 = 1 << 63;
        const PACKED: u64 = 1 << 62;
        let mut places = vec![0, self.l1, self.refcounts, self.cluster, end, end - self.cluster];
        places
            .extend(self.l2.iter().take(2).chain(self.blocks.iter().take(2)).chain(self.data.iter().take(2)));
        places.extend([1 << 30, 1 << 40, 1 << 55, self.cluster / 2, self.l1 + 512]);
        let flags = |place: &u64| [*place, place | COPIED, place | PACKED, place | 1, place | COPIED | 1];
        let mut values: Vec<_> = places.iter().flat_map(flags).collect();
        values.extend([
            u64::MAX,
            1,
            COPIED,
            PACKED,
            PACKED | (0xfff << 48),
            0x0001_0001_0001_0001,
            0xff << 56,
        ]);
        values
    }
}

/// Does everything with an image and returns what the disk held, if all of it could be read.
fn exercise(path: &Path, access: Access) -> Option<Vec<u8>> {
    let disk = match Qcow2Disk::open(path, access, true) {
        Ok(disk) => disk,
        Err(error) => {
            let text = error.to_string();
            let has_mend = ["qemu-img", "go back to a copy", "supported", "truncate"];
            assert!(has_mend.iter().any(|mend| text.contains(mend)) && !text.contains('\n'), "{text}");
            return None;
        }
    };
    // A header may promise a disk of any size; the test looks at what it knows.
    let bytes = disk.size_bytes().min(DISK) as usize;
    let piece = |from: usize| from..(from + (32 << 10)).min(bytes);
    let starts = || (0..bytes).step_by(32 << 10);
    let mut held = vec![0xee; bytes];
    let mut whole = bytes == DISK as usize;
    for from in starts() {
        let place = &mut held[piece(from)];
        if let Err(error) = disk.read_at(&Buffers::of_slice(place), from as u64) {
            assert!(error.to_string().contains("is damaged") || error.raw_os_error().is_some(), "{error}");
            whole = false;
        }
    }
    let _ = disk.next_data(0);
    if !access.readonly {
        for (round, from) in starts().enumerate() {
            let mut data = vec![0x77; piece(from).len()];
            let offset = from as u64;
            let _ = match round % 4 {
                0 | 1 => disk.write_at(&Buffers::of_slice(&mut data), offset),
                2 => disk.discard(offset, data.len() as u64),
                _ => disk.write_zeroes(offset, data.len() as u64, round % 8 == 3),
            };
            if round % 7 == 0 {
                let _ = disk.flush();
            }
        }
        if disk.size_bytes() <= DISK {
            let _ = disk.grow(DISK + (DISK / 2));
            let _ = disk.write_at(&Buffers::of_slice(&mut [1; 4096]), DISK);
        }
        let _ = disk.flush();
    }
    whole.then_some(held)
}

/// Does this with an image on a thread of its own, which must come to an end; the file must stay what it was.
fn survive(image: &[u8], access: Access, what: &str) -> Option<Vec<u8>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(image, 0).unwrap();
    let (done, result) = mpsc::channel();
    let path = file.path().to_owned();
    let thread = std::thread::spawn(move || done.send(exercise(&path, access)));
    let held = match result.recv_timeout(PATIENCE) {
        Ok(held) => held,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            thread.join().unwrap().unwrap();
            panic!("{what}: it ended without a result");
        }
    };
    let bytes = file.as_file().metadata().unwrap().len();
    assert!(bytes <= (image.len() as u64 + (1100 << 20)), "{what}: the file has {bytes} bytes");
    // Magic and version; a disk that grows has the rest written anew.
    let mut start = [0; 8];
    let have = start.len().min(image.len());
    file.as_file().read_exact_at(&mut start[..have], 0).unwrap();
    assert_eq!(start[..have], image[..have], "{what}: the header");
    held
}

#[test]
fn an_image_that_is_cut_off_anywhere_shows_its_data_or_an_error() {
    for Sound { name, image, disk } in sound() {
        let anatomy = Anatomy::of(&image);
        let end = image.len() as u64;
        let mut cuts: Vec<u64> = vec![0, 4, 72, 104, 112, 512, end - 1, end - 512];
        let tables = [&[anatomy.l1, anatomy.refcounts][..], &anatomy.l2, &anatomy.blocks].concat();
        let clusters = tables.iter().chain(anatomy.data.iter().step_by(1 + anatomy.data.len() / 20));
        cuts.extend(clusters.flat_map(|at| [*at, at + 8, at + 512, at + anatomy.cluster / 2]));
        cuts.retain(|cut| *cut < end);
        cuts.sort_unstable();
        cuts.dedup();
        for cut in cuts.iter().step_by(1 + cuts.len() / 60) {
            for access in [Access::READ, Access::WRITE] {
                let what = format!("{name}, cut at {cut} of {end}, {access:?}");
                let held = survive(&image[..*cut as usize], access, &what);
                assert!(held.is_none_or(|held| held == disk), "{what}: other data");
            }
        }
    }
}

#[test]
fn entries_that_lead_anywhere_do_no_harm() {
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    for Sound { name, image, .. } in sound() {
        let anatomy = Anatomy::of(&image);
        let (places, values) = (anatomy.entries(), anatomy.values(image.len() as u64));
        // A 2 MiB image is large to copy.
        let cases = if anatomy.cluster > 1 << 20 { 10 } else { 50 };
        for case in 0..cases {
            let mut damaged = image.clone();
            let mut said = format!("{name}, case {case}");
            for _ in 0..1 + random.next_u32() % 3 {
                let place = places[random.next_u32() as usize % places.len()];
                let value = values[random.next_u32() as usize % values.len()];
                let width = [8, 8, 8, 4, 2][random.next_u32() as usize % 5];
                if place as usize + 8 <= damaged.len() {
                    damaged[place as usize..][..width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
                    said.push_str(&format!(", {value:#x} ({width} bytes) at {place:#x}"));
                }
            }
            let access = if case % 5 == 0 { Access::READ } else { Access::WRITE };
            survive(&damaged, access, &said);
        }
    }
}

#[test]
fn random_damage_does_no_harm() {
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    for Sound { name, image, .. } in sound() {
        let anatomy = Anatomy::of(&image);
        let cases = if anatomy.cluster > 1 << 20 { 5 } else { 25 };
        let tables =
            [&[0, anatomy.l1, anatomy.refcounts][..], &anatomy.l2, &anatomy.blocks, &anatomy.data].concat();
        for case in 0..cases {
            let mut damaged = image.clone();
            for _ in 0..1 + random.next_u32() % 8 {
                let table = tables[random.next_u32() as usize % tables.len()];
                let at = table + u64::from(random.next_u32()) % anatomy.cluster.min(128);
                if let Some(byte) = damaged.get_mut(at as usize) {
                    *byte ^= random.next_u32() as u8;
                }
            }
            survive(&damaged, Access::WRITE, &format!("{name}, random case {case}"));
        }
    }
}

/// What each kind of damage is answered with, when the image is opened or when something is done with its first cluster.
#[test]
fn an_entry_that_leads_to_a_table_is_refused_where_it_is_found() {
    const PACKED: u64 = 1 << 62;
    const COPIED: u64 = 1 << 63;
    let Sound { image, .. } = sound().remove(0);
    let Anatomy { cluster, l1, refcounts, l2, blocks, .. } = Anatomy::of(&image);
    let (l2, block) = (l2[0], blocks[0]);
    let counts = |of: u64| block + of / cluster * 2;
    let at_open: [(u64, &[u8], &str); 7] = [
        (l1, &COPIED.wrapping_add(block).to_be_bytes(), "where another table is"),
        (l1, &(COPIED | refcounts).to_be_bytes(), "leads to the header or to one of the first tables"),
        (refcounts, &l1.to_be_bytes(), "leads to the header or to one of the first tables"),
        (l1 + 8, &(COPIED | l2).to_be_bytes(), "where another table is"),
        (l1, &(COPIED | (1 << 40)).to_be_bytes(), "is cut off"),
        (counts(l2), &[0, 0], "as free"),
        (40, &refcounts.to_be_bytes(), "overlap"),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    let put = |at: u64, bytes: &[u8]| {
        file.as_file().write_all_at(&image, 0).unwrap();
        file.as_file().write_all_at(bytes, at).unwrap();
    };
    for (at, bytes, part) in at_open {
        // The second L1 entry is there if the disk is larger than 512 MiB.
        put(36, &2_u32.to_be_bytes());
        file.as_file().write_all_at(bytes, at).unwrap();
        let refused = Qcow2Disk::open(file.path(), Access::WRITE, true).unwrap_err().to_string();
        assert!(refused.contains(part), "{part:?} in {refused}");
    }
    for entry in [l1, l2, block, refcounts].map(|table| COPIED | table).into_iter().chain([PACKED | 0x100]) {
        put(l2, &entry.to_be_bytes());
        let disk = Qcow2Disk::open(file.path(), Access::WRITE, true).unwrap();
        let mut data = vec![9; 512];
        let said = disk.write_at(&Buffers::of_slice(&mut data), 0).unwrap_err().to_string();
        assert!(
            said.contains("leads to the table at byte") && said.contains("qemu-img check -r all"),
            "{said}"
        );
        assert!(disk.discard(0, cluster).is_err() && disk.read_at(&Buffers::of_slice(&mut data), 0).is_err());
        drop(disk);
        let mut left = vec![0; image.len()];
        file.as_file().read_exact_at(&mut left, 0).unwrap();
        assert!(
            left[..8] == image[..8] && left[8 + l2 as usize..] == image[8 + l2 as usize..],
            "it is as it was"
        );
    }
}
