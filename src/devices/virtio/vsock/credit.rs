//! How much each side may send (virtio 1.2 §5.10.6.3): counters modulo 2^32, of which the guest's may be lies.

/// More than this is never on its way to the guest, whatever it promises: so that counters can be compared.
const MOST_IN_FLIGHT: u32 = 1 << 30;

/// The guest said something about its buffer or used ours in a way that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lie;

/// Both directions of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credit {
    /// The guest's buffer, as it last said.
    peer_alloc: u32,
    /// What the guest's user has taken, as far as we know.
    peer_forwarded: u32,
    /// What we sent to the guest.
    sent: u32,
    /// Our buffer.
    alloc: u32,
    /// What the guest sent to us.
    received: u32,
    /// What the host's user has taken, or was thrown away in its place.
    forwarded: u32,
    /// The `forwarded` that the guest heard of last.
    told: u32,
}

impl Credit {
    /// A new connection for which we keep at most `alloc` bytes.
    pub(super) fn new(alloc: u32) -> Self {
        Self { peer_alloc: 0, peer_forwarded: 0, sent: 0, alloc, received: 0, forwarded: 0, told: 0 }
    }

    /// Takes in what the guest says of its buffer.
    ///
    /// Packets of one connection may be queued by several threads of the driver, so a count can be older than the one
    /// before it; one that is ahead of what we sent is a lie.
    pub(super) fn hear(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), Lie> {
        let advance = fwd_cnt.wrapping_sub(self.peer_forwarded);
        if advance <= self.in_flight() {
            self.peer_forwarded = fwd_cnt;
        } else if advance < 1 << 31 {
            return Err(Lie);
        }
        self.peer_alloc = buf_alloc;
        Ok(())
    }

    /// Sent to the guest and, as far as we know, not taken by its user.
    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.peer_forwarded)
    }

    /// Bytes the guest has room for.
    pub(super) fn room(&self) -> u32 {
        self.peer_alloc.min(MOST_IN_FLIGHT).saturating_sub(self.in_flight())
    }

    /// Bytes go to the guest, at most [`Credit::room`].
    pub(super) fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Bytes come from the guest.
    pub(super) fn receive(&mut self, bytes: u32) -> Result<(), Lie> {
        let kept = self.received.wrapping_sub(self.forwarded);
        if bytes > self.alloc.saturating_sub(kept) {
            return Err(Lie);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Bytes of those went on to the host's user.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// The guest should hear that there is room again: a quarter of our buffer has been emptied since it last did. It
    /// never waits in vain, for when it has filled the buffer, more than that is to be emptied.
    pub(super) fn is_news(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= (self.alloc / 4).max(1)
    }

    /// `buf_alloc` and `fwd_cnt` of a packet that now goes to the guest.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.alloc, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_gets_what_it_has_room_for() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.room(), 0, "nothing is known yet");
        credit.hear(10, 0).unwrap();
        credit.send(10);
        assert_eq!(credit.room(), 0);
        credit.hear(10, 4).unwrap();
        assert_eq!(credit.room(), 4);
        credit.hear(3, 4).unwrap();
        assert_eq!(credit.room(), 0, "a buffer that shrank below what is in it");
        credit.hear(u32::MAX, 10).unwrap();
        assert_eq!(credit.room(), MOST_IN_FLIGHT);
    }

    #[test]
    fn counters_go_round() {
        let mut credit = Credit::new(1 << 20);
        credit.hear(1 << 20, 0).unwrap();
        for round in 1..=5000_u32 {
            credit.send(1 << 20);
            assert_eq!(credit.room(), 0);
            credit.hear(1 << 20, round.wrapping_mul(1 << 20)).unwrap();
            credit.receive(1 << 20).unwrap();
            assert_eq!(credit.receive(1), Err(Lie));
            credit.forward(1 << 20);
        }
    }

    #[test]
    fn a_count_ahead_of_what_was_sent_is_a_lie_and_an_old_one_is_not() {
        let mut credit = Credit::new(100);
        credit.hear(50, 0).unwrap();
        credit.send(20);
        assert_eq!(credit.hear(50, 21), Err(Lie));
        credit.hear(50, 20).unwrap();
        credit.hear(50, 12).unwrap();
        assert_eq!(credit.room(), 50, "the older count changes nothing");
        assert_eq!(credit.hear(50, 1 << 30), Err(Lie));
    }

    #[test]
    fn the_guest_hears_of_a_quarter() {
        let mut credit = Credit::new(100);
        credit.receive(100).unwrap();
        credit.forward(24);
        assert!(!credit.is_news());
        credit.forward(1);
        assert!(credit.is_news());
        assert_eq!(credit.tell(), (100, 25));
        assert!(!credit.is_news());
    }
}
