//! Random operations on every kind of disk, against a vector of bytes that cannot be wrong.

use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SECTORS: u64 = 700;
const MIB: u64 = 1 << 20;

#[derive(Debug, Clone)]
enum Step {
    Read { sector: u64, sectors: u64, cut: usize },
    Write { sector: u64, sectors: u64, value: u8, cut: usize },
    Zero { sector: u64, sectors: u64, unmap: bool },
    Discard { sector: u64, sectors: u64 },
    Flush,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range =
        (0..SECTORS, 1..300_u64).prop_map(|(sector, sectors)| (sector, sectors.min(SECTORS - sector)));
    let step = prop_oneof![
        3 => (range.clone(), any::<usize>()).prop_map(|((sector, sectors), cut)| Step::Read { sector, sectors, cut }),
        5 => (range.clone(), 1..=255_u8, any::<usize>())
            .prop_map(|((sector, sectors), value, cut)| Step::Write { sector, sectors, value, cut }),
        2 => (range.clone(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Step::Zero { sector, sectors, unmap }),
        1 => range.prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// The memory in two pieces, as a guest may cut it.
fn in_two<'m>(memory: &'m mut [u8], cut: usize) -> Buffers<'m> {
    let cut = cut % memory.len();
    let (first, second) = memory.split_at_mut(cut);
    Buffers::of(&[first.into(), second.into()])
}

/// Does the steps with a disk and with a model; `offset` is where the model's bytes begin on the disk.
fn compare(open: &dyn Fn() -> Arc<dyn Disk>, mut model: Vec<u8>, offset: u64, steps: &[Step]) {
    let mut disk = open();
    let place = |sector: u64| offset + sector * SECTOR;
    for step in steps {
        match *step {
            Step::Read { sector, sectors, cut } => {
                let mut back = vec![0xee; (sectors * SECTOR) as usize];
                disk.read_at(&in_two(&mut back, cut), place(sector)).unwrap();
                assert!(back == model[(sector * SECTOR) as usize..][..back.len()], "{step:?}");
            }
            Step::Write { sector, sectors, value, cut } => {
                let mut data = vec![value; (sectors * SECTOR) as usize];
                disk.write_at(&in_two(&mut data, cut), place(sector)).unwrap();
                model[(sector * SECTOR) as usize..][..data.len()].fill(value);
            }
            Step::Zero { sector, sectors, unmap } => {
                disk.write_zeroes(place(sector), sectors * SECTOR, unmap).unwrap();
                model[(sector * SECTOR) as usize..][..(sectors * SECTOR) as usize].fill(0);
            }
            Step::Discard { sector, sectors } => {
                disk.discard(place(sector), sectors * SECTOR).unwrap();
                let mut now = vec![0xee; (sectors * SECTOR) as usize];
                disk.read_at(&Buffers::of_slice(&mut now), place(sector)).unwrap();
                let before = &mut model[(sector * SECTOR) as usize..][..now.len()];
                for (now, before) in now.iter().zip(before) {
                    assert!(*now == 0 || now == before, "{step:?}");
                    *before = *now;
                }
            }
            Step::Flush => disk.flush().unwrap(),
            Step::Reopen => {
                drop(disk);
                disk = open();
            }
        }
    }
    let mut all = vec![0xee; model.len()];
    disk.read_at(&Buffers::of_slice(&mut all), offset).unwrap();
    assert!(all == model);
    let mut at = offset;
    while let Some(data) = disk.next_data(at).unwrap().filter(|data| data.start < offset + model.len() as u64)
    {
        let hole = (at - offset) as usize..(data.start - offset) as usize;
        assert!(model[hole].iter().all(|byte| *byte == 0), "a hole holds zeroes");
        at = data.end;
    }
}

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str, format: Format) -> Arc<dyn Disk> {
        Image { path: self.path(name), format: Some(format), access: Access::WRITE, follow_backing: true }
            .open()
            .unwrap()
    }

    fn raw(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_raw_image_behaves_as_bytes(steps in steps()) {
        let place = Place::new();
        let bytes = vec![0x11; (SECTORS * SECTOR) as usize];
        place.raw("a.img", &bytes);
        compare(&|| place.open("a.img", Format::Raw), bytes, 0, &steps);
    }

    #[test]
    fn a_qcow2_image_on_two_bases_behaves_as_bytes(steps in steps(), middle in steps()) {
        let place = Place::new();
        let mut bytes = vec![0x11; 300 * SECTOR as usize];
        place.raw("base.img", &bytes);
        bytes.resize((SECTORS * SECTOR) as usize, 0);
        let overlay = |name: &str, base: &str, format| {
            let backing = Some(Backing { name: base.into(), format: Some(format) });
            let size_bytes = Some(SECTORS * SECTOR);
            create(&NewImage { path: place.path(name), format: Format::Qcow2, size_bytes, backing, force: false }).unwrap();
        };
        overlay("middle.qcow2", "base.img", Format::Raw);
        compare(&|| place.open("middle.qcow2", Format::Qcow2), bytes.clone(), 0, &middle);
        let disk = place.open("middle.qcow2", Format::Qcow2);
        disk.read_at(&Buffers::of_slice(&mut bytes), 0).unwrap();
        drop(disk);
        overlay("top.qcow2", "middle.qcow2", Format::Qcow2);
        compare(&|| place.open("top.qcow2", Format::Qcow2), bytes, 0, &steps);
        qcow2::tests::qemu_img(&["check", "-q", place.path("top.qcow2").to_str().unwrap()]);
        qcow2::tests::qemu_img(&["check", "-q", place.path("middle.qcow2").to_str().unwrap()]);
    }

    /// What a file holds while the disk is open is what a process that is killed leaves behind.
    #[test]
    fn what_was_flushed_survives_a_kill(before in steps(), after in steps()) {
        let place = Place::new();
        let size_bytes = Some(SECTORS * SECTOR);
        create(&NewImage { path: place.path("a.qcow2"), format: Format::Qcow2, size_bytes, backing: None, force: false }).unwrap();
        let disk = place.open("a.qcow2", Format::Qcow2);
        let change = |step: &Step| match *step {
            Step::Write { sector, sectors, value, .. } => {
                disk.write_at(&Buffers::of_slice(&mut vec![value; (sectors * SECTOR) as usize]), sector * SECTOR).unwrap();
                sector..sector + sectors
            }
            Step::Zero { sector, sectors, unmap } => {
                disk.write_zeroes(sector * SECTOR, sectors * SECTOR, unmap).unwrap();
                sector..sector + sectors
            }
            Step::Discard { sector, sectors } => {
                disk.discard(sector * SECTOR, sectors * SECTOR).unwrap();
                sector..sector + sectors
            }
            Step::Read { .. } | Step::Flush | Step::Reopen => 0..0,
        };
        for step in &before {
            change(step);
        }
        disk.flush().unwrap();
        let mut flushed = vec![0; (SECTORS * SECTOR) as usize];
        disk.read_at(&Buffers::of_slice(&mut flushed), 0).unwrap();
        let touched: Vec<_> = after.iter().map(change).collect();
        std::fs::copy(place.path("a.qcow2"), place.path("left.qcow2")).unwrap();
        qcow2::tests::qemu_img_sound_but_for_leaks(&place.path("left.qcow2"));
        let left = place.open("left.qcow2", Format::Qcow2);
        let mut found = vec![0xee; flushed.len()];
        left.read_at(&Buffers::of_slice(&mut found), 0).unwrap();
        for sector in (0..SECTORS).filter(|sector| !touched.iter().any(|range| range.contains(sector))) {
            let bytes = (sector * SECTOR) as usize..((sector + 1) * SECTOR) as usize;
            prop_assert!(flushed[bytes.clone()] == found[bytes], "sector {}", sector);
        }
    }

    #[test]
    fn a_composite_disk_behaves_as_bytes(steps in steps()) {
        let place = Place::new();
        place.raw("a.img", &vec![0x11; 2048 * SECTOR as usize]);
        place.raw("b.img", &vec![0x22; (SECTORS * SECTOR) as usize]);
        let part = |label: &str, name: &str| Partition { label: label.into(), path: place.path(name), readonly: false, said_raw: false };
        let parts = [part("a", "a.img"), part("b", "b.img")];
        let open = || Arc::new(CompositeDisk::open(&parts, Access::WRITE).unwrap()) as Arc<dyn Disk>;
        // The last 348 sectors of one file and the first 352 of the next, which follow each other without a gap.
        let mut bytes = vec![0x11; 348 * SECTOR as usize];
        bytes.resize((SECTORS * SECTOR) as usize, 0x22);
        compare(&open, bytes, 2 * MIB - 348 * SECTOR, &steps);
        let untouched = std::fs::read(place.path("a.img")).unwrap();
        prop_assert!(untouched[..1700 * SECTOR as usize].iter().all(|byte| *byte == 0x11));
    }

    #[test]
    fn a_damaged_qcow2_image_is_refused_or_read_without_harm(
        damage in prop::collection::vec((0..4096_usize, any::<u8>()), 1..8),
        far in prop::collection::vec((0..400_000_usize, any::<u8>()), 0..8),
    ) {
        let place = Place::new();
        let path = place.path("a.qcow2");
        create(&NewImage { path: path.clone(), format: Format::Qcow2, size_bytes: Some(MIB), backing: None, force: false }).unwrap();
        let disk = place.open("a.qcow2", Format::Qcow2);
        disk.write_at(&Buffers::of_slice(&mut vec![7; 100_000]), 4096).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let mut image = std::fs::read(&path).unwrap();
        for (at, value) in damage.into_iter().chain(far) {
            let at = at % image.len();
            image[at] = value;
        }
        std::fs::write(&path, image).unwrap();
        if let Ok(disk) = Qcow2Disk::open(&path, Access::WRITE, false) {
            let bytes = disk.size_bytes().min(2 * MIB);
            let mut memory = vec![1; bytes as usize];
            let _ = disk.read_at(&Buffers::of_slice(&mut memory), 0);
            let _ = disk.write_at(&Buffers::of_slice(&mut memory), 0);
            let _ = disk.flush();
        }
    }
}
