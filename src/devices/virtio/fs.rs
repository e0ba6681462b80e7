//! virtio-fs (virtio 1.2 §5.11): a directory of the host, mounted in the guest by its tag.
//!
//! The queues carry FUSE requests, and this device never looks into them: whoever answers is behind [`FsServer`].

use std::sync::Arc;

use super::vhost::{Backend, Session};
use super::{F_EVENT_IDX, F_INDIRECT_DESC, Fault, Kind, Lane, Start, VirtioDevice};

/// Bytes of the tag in the configuration structure (virtio 1.2 §5.11.4).
pub const TAG_BYTES: usize = 36;
/// The high-priority queue, and one for requests.
pub const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 256;

/// Who answers a share's FUSE requests: another process today.
pub trait FsServer: Send + Sync {
    /// The features of the rings it can serve.
    fn ring_features(&self) -> u64;

    /// Serves the queues the driver enabled.
    ///
    /// # Errors
    /// When it cannot.
    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault>;

    /// Who it is, for the status.
    fn describe(&self) -> String;
}

/// One share.
pub struct Fs {
    tag: String,
    server: Box<dyn FsServer>,
}

impl Fs {
    /// A share that the guest mounts by `tag`, of at most [`TAG_BYTES`].
    #[must_use]
    pub fn new(tag: String, server: Box<dyn FsServer>) -> Self {
        Self { tag, server }
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> Kind {
        Kind { id: 26, name: "virtio-fs", class: [0x01, 0x80] }
    }

    fn ring_features(&self) -> u64 {
        self.server.ring_features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    /// The tag, padded with zeros, and the number of request queues.
    fn config(&self) -> Vec<u8> {
        let mut config: Vec<u8> = self.tag.bytes().take(TAG_BYTES).collect();
        config.resize(TAG_BYTES, 0);
        config.extend_from_slice(&1_u32.to_le_bytes());
        config
    }

    fn start(&self, start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        self.server.start(start)
    }

    fn backend(&self) -> Option<String> {
        Some(self.server.describe())
    }
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl<B: Backend + 'static> FsServer for Arc<Session<B>> {
    fn ring_features(&self) -> u64 {
        self.features() & (F_EVENT_IDX | F_INDIRECT_DESC)
    }

    fn start(&self, mut start: Start<'_>) -> Result<Vec<Lane>, Fault> {
        Ok(vec![self.serve(&mut start, 0..QUEUES)?])
    }

    fn describe(&self) -> String {
        Session::describe(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl FsServer for Nobody {
        fn ring_features(&self) -> u64 {
            F_INDIRECT_DESC
        }

        fn start(&self, _start: Start<'_>) -> Result<Vec<Lane>, Fault> {
            Ok(Vec::new())
        }

        fn describe(&self) -> String {
            "nobody".into()
        }
    }

    #[test]
    fn the_configuration_is_the_tag_and_one_request_queue() {
        let config = |tag: &str| Fs::new(tag.to_owned(), Box::new(Nobody)).config();
        let short = config("data");
        assert_eq!((short.len(), &short[..5], short[36]), (40, &b"data\0"[..], 1));
        assert_eq!(&config(&"x".repeat(36))[..36], [b'x'; 36], "a tag of full length has no zero (§5.11.4)");
        assert_eq!(config(&"x".repeat(40)).len(), 40);
    }
}
