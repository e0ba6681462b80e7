//! The header of every packet (virtio 1.2 §5.10.6): 44 bytes, little-endian.

use crate::backend::vsock::HOST_CID;

/// Bytes of `struct virtio_vsock_hdr`.
pub(super) const HEADER_BYTES: usize = 44;

/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const TYPE_STREAM: u16 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: who sends it will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: who sends it will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both: the connection is over.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// VIRTIO_VSOCK_OP_REQUEST: open a connection.
    Request,
    /// VIRTIO_VSOCK_OP_RESPONSE: it is open.
    Response,
    /// VIRTIO_VSOCK_OP_RST: it is gone, or never was.
    Reset,
    /// VIRTIO_VSOCK_OP_SHUTDOWN, with flags.
    Shutdown,
    /// VIRTIO_VSOCK_OP_RW: data.
    Data,
    /// VIRTIO_VSOCK_OP_CREDIT_UPDATE: nothing but the two counters.
    CreditUpdate,
    /// VIRTIO_VSOCK_OP_CREDIT_REQUEST: send me yours.
    CreditRequest,
    /// Anything else.
    Unknown(u16),
}

impl From<u16> for Op {
    fn from(op: u16) -> Self {
        match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> Self {
        match op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(other) => other,
        }
    }
}

/// One packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data behind the header.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: Op,
    pub(super) flags: u32,
    /// The sender's whole buffer for this connection.
    pub(super) buf_alloc: u32,
    /// What the sender's user has taken out of that buffer so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// A packet without data from the host to the guest `guest_cid`.
    pub(super) fn to_guest(guest_cid: u64, host_port: u32, guest_port: u32, op: Op) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: host_port,
            dst_port: guest_port,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The reset that answers this packet, whatever it was addressed to.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            src_port: self.dst_port,
            kind: self.kind,
            ..Self::to_guest(self.src_cid, self.dst_port, self.src_port, Op::Reset)
        }
    }

    /// Reads a header.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(rest.take()),
            dst_cid: u64::from_le_bytes(rest.take()),
            src_port: u32::from_le_bytes(rest.take()),
            dst_port: u32::from_le_bytes(rest.take()),
            len: u32::from_le_bytes(rest.take()),
            kind: u16::from_le_bytes(rest.take()),
            op: u16::from_le_bytes(rest.take()).into(),
            flags: u32::from_le_bytes(rest.take()),
            buf_alloc: u32::from_le_bytes(rest.take()),
            fwd_cnt: u32::from_le_bytes(rest.take()),
        }
    }

    /// Writes it.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&u16::from(self.op).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// Takes fields off the front of a header; what is beyond its end reads as zero.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_place() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|index| index as u8);
        let header = Header::decode(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.src_port, 0x1312_1110);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!(header.kind, 0x1d1c);
        assert_eq!(header.op, Op::Unknown(0x1f1e));
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!(header.buf_alloc, 0x2726_2524);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn operations_are_numbered_as_the_standard_numbers_them() {
        for number in 0..=8 {
            assert_eq!(u16::from(Op::from(number)), number);
        }
        assert_eq!((Op::from(0), Op::from(8)), (Op::Unknown(0), Op::Unknown(8)));
        assert_eq!((Op::from(1), Op::from(5)), (Op::Request, Op::Data));
    }
}
