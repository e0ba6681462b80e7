//! From a disk's plan to a device with an open disk, and which disk is meant by a word.

use std::sync::Arc;

use crate::backend::disk::{Access, CompositeDisk, Disk, DiskError, Format, Image, Io, Partition};
use crate::devices::rate_limit::Rate;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::{Block, BlockOptions, ResizeError};
use crate::spec::plan::{CacheMode, DiskFormat, DiskIo, DiskPlan, DiskSource, RateLimit, linux_disk_name};
use crate::status::operation::Refusal;

/// The guest's disks, in the order of the spec.
pub(super) struct Disks(Vec<Arc<Block>>);

impl Disks {
    /// Opens what the plans name, for a guest with `cpus` vCPUs.
    pub(super) fn open(plans: &[DiskPlan], cpus: u8) -> Result<Self, DiskError> {
        let open = |(index, plan)| device(plan, index, cpus).map(Arc::new);
        Ok(Self(plans.iter().enumerate().map(open).collect::<Result<_, _>>()?))
    }

    /// The devices, in the same order.
    pub(super) fn devices(&self) -> impl Iterator<Item = Arc<dyn VirtioDevice>> {
        self.0.iter().map(|disk| Arc::clone(disk) as _)
    }

    /// Makes a disk larger, or without a size, looks how large its image is by now; the guest is told.
    pub(super) fn resize(&self, which: &str, size_bytes: Option<u64>) -> Result<(), Refusal> {
        let disk = self.find(which)?;
        let before = disk.size_bytes();
        let resized = disk.resize(size_bytes).map_err(|error| match error {
            ResizeError::Kernel(_) => Refusal::Failed(error.to_string()),
            ResizeError::ReadOnly | ResizeError::Fixed { .. } => Refusal::Cannot(error.to_string()),
            ResizeError::NoSectors(_) | ResizeError::Smaller { .. } => Refusal::Bad(error.to_string()),
        })?;
        tracing::info!(disk = %disk.name(), asked = which, before_bytes = before, now_bytes = resized, "a disk was resized");
        Ok(())
    }

    /// The disk that a serial number, a name in the guest or a number means, in this order: a serial number is the user's
    /// own word. Linux names virtio disks as it finds them, which is the order of the spec.
    fn find(&self, which: &str) -> Result<&Block, Refusal> {
        let mut called = self.0.iter().filter(|disk| disk.serial() == which);
        match (called.next(), called.next()) {
            (Some(disk), None) => return Ok(disk),
            (Some(_), Some(_)) => {
                let problem =
                    format!("more than one disk has the serial number {which}: name it by its place");
                return Err(Refusal::Bad(problem));
            }
            (None, _) => {}
        }
        let is_it = |index: &usize| linux_disk_name(*index) == which || index.to_string() == which;
        let found = (0..self.0.len()).find(is_it).and_then(|index| self.0.get(index));
        found.map(AsRef::as_ref).ok_or_else(|| {
            let names: Vec<_> = (0..self.0.len()).map(linux_disk_name).collect();
            if names.is_empty() {
                return Refusal::Cannot("the machine has no disk: it was started without --disk".to_owned());
            }
            Refusal::Bad(format!("there is no disk `{which}`: the machine has {}", names.join(", ")))
        })
    }
}

/// The guest's disk number `index`, for a guest with `cpus` vCPUs.
fn device(plan: &DiskPlan, index: usize, cpus: u8) -> Result<Block, DiskError> {
    let options = BlockOptions {
        serial: plan.serial_of(index),
        queues: plan.queues.unwrap_or(cpus.into()),
        writeback: plan.cache == CacheMode::Writeback,
        io: match plan.io {
            DiskIo::Auto => Io::Auto,
            DiskIo::Uring => Io::Uring,
            DiskIo::Threads => Io::Threads,
        },
        bytes: plan.bytes.map(rate),
        operations: plan.ops.map(rate),
    };
    Block::new(open(plan)?, options)
}

/// A bucket holds what a second brings, and the burst on top.
pub(super) fn rate(limit: RateLimit) -> Rate {
    Rate { per_second: limit.per_second, burst: limit.per_second.saturating_add(limit.burst) }
}

/// Opens and locks what a plan names.
fn open(plan: &DiskPlan) -> Result<Arc<dyn Disk>, DiskError> {
    let access = Access { readonly: plan.readonly, direct: plan.direct };
    match &plan.source {
        DiskSource::Image { path, format, follow_backing } => {
            let format = format.map(|format| match format {
                DiskFormat::Raw => Format::Raw,
                DiskFormat::Qcow2 => Format::Qcow2,
            });
            Image { path: path.clone(), format, access, follow_backing: *follow_backing }.open()
        }
        DiskSource::Partitions { partitions, said_raw } => {
            let partition = |plan: &crate::spec::plan::PartitionPlan| Partition {
                label: plan.label.clone(),
                path: plan.path.clone(),
                readonly: plan.readonly,
                said_raw: *said_raw,
            };
            let partitions: Vec<_> = partitions.iter().map(partition).collect();
            Ok(Arc::new(CompositeDisk::open(&partitions, access)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::disk::RawDisk;

    fn disks(serials: &[&str], readonly: bool) -> (Disks, Vec<tempfile::NamedTempFile>) {
        let images: Vec<_> = serials.iter().map(|_| tempfile::NamedTempFile::new().unwrap()).collect();
        let device = |(image, serial): (&tempfile::NamedTempFile, &&str)| {
            image.as_file().set_len(1 << 20).unwrap();
            let disk = RawDisk::open(image.path(), Access { readonly, direct: false }).unwrap();
            let options = BlockOptions { serial: (*serial).to_owned(), ..BlockOptions::default() };
            Arc::new(Block::new(Arc::new(disk), options).unwrap())
        };
        let devices = images.iter().zip(serials).map(device).collect();
        (Disks(devices), images)
    }

    fn sizes(disks: &Disks) -> Vec<u64> {
        disks.0.iter().map(|disk| disk.size_bytes() >> 20).collect()
    }

    #[test]
    fn a_disk_is_named_by_serial_number_by_linux_or_by_number() {
        let (disks, _images) = disks(&["nestling-0", "vda", "data", "data"], false);
        for (which, mib) in [("nestling-0", 2), ("vda", 3), ("2", 4), ("vdd", 5)] {
            disks.resize(which, Some(mib << 20)).unwrap();
        }
        assert_eq!(sizes(&disks), [2, 3, 4, 5], "a serial number comes before Linux's name");
        let said = |which| disks.resize(which, None).unwrap_err().to_string();
        assert_eq!(said("vde"), "there is no disk `vde`: the machine has vda, vdb, vdc, vdd");
        assert!(said("data").starts_with("more than one disk has the serial number data"));
        assert!(Disks(Vec::new()).resize("vda", None).is_err());
        let names = [0, 25, 26, 701, 702].map(linux_disk_name);
        assert_eq!(names, ["vda", "vdz", "vdaa", "vdzz", "vdaaa"]);
    }

    #[test]
    fn a_disk_grows_or_has_the_size_of_its_image_and_never_less_by_request() {
        let (disks, images) = disks(&["a"], false);
        disks.resize("a", Some(1 << 20)).unwrap();
        let bad = |size| match disks.resize("a", Some(size)).unwrap_err() {
            Refusal::Bad(text) => text,
            other => panic!("{other:?}"),
        };
        assert!(bad(1 << 19).contains("has 1048576 bytes"), "{}", bad(1 << 19));
        assert!(bad((1 << 20) + 1).contains("multiple of 512"), "{}", bad((1 << 20) + 1));
        assert_eq!(sizes(&disks), [1]);
        images[0].as_file().set_len(7 << 20).unwrap();
        disks.resize("a", None).unwrap();
        assert_eq!(sizes(&disks), [7]);
        assert!(matches!(disks.resize("a", Some(1 << 63)).unwrap_err(), Refusal::Failed(_)));
        assert_eq!(sizes(&disks), [7]);

        let (readonly, images) = self::disks(&["a"], true);
        let refused = readonly.resize("a", Some(2 << 20)).unwrap_err().to_string();
        assert!(refused.contains("read-only"), "{refused}");
        images[0].as_file().set_len(2 << 20).unwrap();
        readonly.resize("a", None).unwrap();
        assert_eq!(sizes(&readonly), [2], "its owner may have made it larger");
    }
}
