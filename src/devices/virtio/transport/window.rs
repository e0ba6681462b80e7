//! The BAR reached through configuration space.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Inner, VirtioPci};

impl VirtioPci {
    /// The PCI configuration access capability (virtio 1.2 §4.1.4.9): a window of 1, 2 or 4 bytes into the BAR for code
    /// that cannot reach it otherwise. Its data is refreshed by every write to the capability, because reading it does not
    /// trap; so it shows the ISR status without clearing it.
    #[allow(
        clippy::arithmetic_side_effects,
        reason = "offsets in the configuration page, which the device laid out"
    )]
    pub(super) fn serve_access_window(&self, inner: &mut Inner, written: Range<usize>) {
        let page = inner.config.page().clone();
        let at = self.access_capability;
        let (bar, offset, len) = (page.u8(at + 4), page.u32(at + 8) as usize, page.u32(at + 12) as usize);
        if bar != 0 || !matches!(len, 1 | 2 | 4) || !offset.is_multiple_of(len) {
            return;
        }
        let window = at + 16;
        let mut bytes = [0; 4];
        page.read(window, &mut bytes);
        let Some(data) = bytes.get_mut(..len) else { return };
        if written.start < window + 4 && window < written.end {
            self.write_bar(inner, offset, data);
        }
        self.read_bar(offset, data, |isr| isr.load(Ordering::Relaxed));
        page.write(window, data);
    }
}
