//! From a disk's plan to a device with an open disk.

use std::sync::Arc;

use crate::backend::disk::{Access, CompositeDisk, Disk, DiskError, Format, Image, Io, Partition};
use crate::devices::rate_limit::Rate;
use crate::devices::virtio::block::{Block, BlockOptions};
use crate::spec::plan::{CacheMode, DiskFormat, DiskIo, DiskPlan, DiskSource, RateLimit};

/// The guest's disk number `index`, for a guest with `cpus` vCPUs.
pub(super) fn device(plan: &DiskPlan, index: usize, cpus: u8) -> Result<Block, DiskError> {
    let options = BlockOptions {
        serial: plan.serial.clone().unwrap_or_else(|| format!("nestling-{index}")),
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
fn rate(limit: RateLimit) -> Rate {
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
        DiskSource::Partitions(partitions) => {
            let partition = |plan: &crate::spec::plan::PartitionPlan| Partition {
                label: plan.label.clone(),
                path: plan.path.clone(),
                readonly: plan.readonly,
            };
            let partitions: Vec<_> = partitions.iter().map(partition).collect();
            Ok(Arc::new(CompositeDisk::open(&partitions, access)?))
        }
    }
}
