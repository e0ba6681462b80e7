//! From a disk's plan to an open disk.

use std::sync::Arc;

use crate::backend::disk::{Access, CompositeDisk, Disk, DiskError, Format, Image, Partition};
use crate::spec::plan::{DiskFormat, DiskPlan, DiskSource};

/// Opens and locks what a plan names.
pub(super) fn open(plan: &DiskPlan) -> Result<Arc<dyn Disk>, DiskError> {
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
