//! The size of the terminal that shows the console: of the last one that told its size.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::screen::borrow;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// The size now. As a descriptor it is readable when the size has changed.
#[derive(Debug)]
pub struct Window {
    /// Columns in the high half, rows in the low one; 0 while nobody has told.
    size: AtomicU32,
    changed: EventFd,
}

impl Window {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { size: AtomicU32::new(0), changed: EventFd::new(libc::EFD_NONBLOCK)? })
    }

    /// Tells the size.
    pub fn set(&self, size: WindowSize) {
        let packed = u32::from(size.cols) << 16 | u32::from(size.rows);
        if self.size.swap(packed, Ordering::AcqRel) != packed {
            let _ = self.changed.write(1);
        }
    }

    /// The size, if anybody has told it.
    #[must_use]
    pub fn size(&self) -> Option<WindowSize> {
        let packed = self.size.load(Ordering::Acquire);
        (packed != 0).then_some(WindowSize { cols: (packed >> 16) as u16, rows: packed as u16 })
    }

    /// The change was heard.
    pub fn take_change(&self) {
        let _ = self.changed.read();
    }
}

impl AsFd for Window {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.changed)
    }
}
