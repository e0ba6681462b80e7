//! Frames: how a byte stream is cut into messages and data, by blocking calls or piece by piece.

use std::io::{ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// The bytes before a payload: its length, and the kind.
pub const HEADER: usize = 5;

/// From here on, kinds that a receiver does not know are skipped.
const OPTIONAL: u8 = 0x80;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The stream itself failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The peer closed the connection within a frame, or where another frame had to come.
    #[error("the peer closed the connection in the middle of {0}")]
    Truncated(&'static str),
    /// A length that no frame has.
    #[error("a frame of {0} bytes: at most {MAX_PAYLOAD} are allowed")]
    TooLong(u64),
    /// A kind that this version does not have and must not skip.
    #[error("a frame of the unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// A frame that makes no sense here.
    #[error("a {got} frame where {wanted} was due")]
    UnexpectedKind {
        /// The kind that came.
        got: Kind,
        /// What could have come.
        wanted: &'static str,
    },
    /// A message that is no JSON, or not the JSON of a message.
    #[error("a message that cannot be understood: {0}")]
    BadMessage(#[source] serde_json::Error),
    /// A message that does not fit the moment.
    #[error("a message out of order: {0} was due")]
    UnexpectedMessage(&'static str),
    /// No version that both speak.
    #[error("no common version: this end speaks {ours}, the peer {theirs}")]
    NoCommonVersion {
        /// Ours.
        ours: crate::Versions,
        /// The peer's.
        theirs: crate::Versions,
    },
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// One JSON object.
    Message = 0x01,
    /// A program's input.
    Stdin = 0x10,
    /// A program's output.
    Stdout = 0x11,
    /// A program's errors.
    Stderr = 0x12,
    /// A file's bytes.
    Data = 0x13,
}

impl Kind {
    /// The kind of that number; `None` for one to be skipped.
    fn from_byte(byte: u8) -> Result<Option<Self>, ProtocolError> {
        let known = [Self::Message, Self::Stdin, Self::Stdout, Self::Stderr, Self::Data];
        match known.into_iter().find(|kind| *kind as u8 == byte) {
            None if byte < OPTIONAL => Err(ProtocolError::UnknownKind(byte)),
            kind => Ok(kind),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Message => "message",
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Data => "data",
        })
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The message that it carries.
    ///
    /// # Errors
    /// It is no message frame, or its payload is not such a message.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, ProtocolError> {
        match self.kind {
            Kind::Message => serde_json::from_slice(&self.payload).map_err(ProtocolError::BadMessage),
            got => Err(ProtocolError::UnexpectedKind { got, wanted: "a message" }),
        }
    }
}

/// A frame as bytes: header and payload, ready for one write.
///
/// # Errors
/// The payload is longer than [`MAX_PAYLOAD`].
pub fn encode(kind: Kind, payload: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let too_long = || ProtocolError::TooLong(payload.len() as u64);
    let length = u32::try_from(payload.len()).map_err(|_| too_long())?;
    if payload.len() > MAX_PAYLOAD {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// A message as the bytes of its frame.
///
/// # Errors
/// It is longer than a frame can be.
pub fn encode_message<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let json = serde_json::to_vec(message).map_err(ProtocolError::BadMessage)?;
    encode(Kind::Message, &json)
}

/// Writes one frame.
///
/// # Errors
/// The payload is too long, or the stream fails.
pub fn write<W: Write>(to: &mut W, kind: Kind, payload: &[u8]) -> Result<(), ProtocolError> {
    Ok(to.write_all(&encode(kind, payload)?)?)
}

/// Writes one message.
///
/// # Errors
/// It is too long, or the stream fails.
pub fn write_message<W: Write, T: Serialize>(to: &mut W, message: &T) -> Result<(), ProtocolError> {
    Ok(to.write_all(&encode_message(message)?)?)
}

/// Reads one frame and not a byte more; `None` when the peer has closed the connection between two frames.
///
/// # Errors
/// What came is no frame, or the stream fails.
pub fn read<R: Read>(from: &mut R) -> Result<Option<Frame>, ProtocolError> {
    loop {
        let mut header = [0; HEADER];
        if !fill(from, &mut header, true)? {
            return Ok(None);
        }
        let (length, kind) = parse_header(header)?;
        let mut payload = vec![0; length];
        fill(from, &mut payload, false)?;
        if let Some(kind) = kind {
            return Ok(Some(Frame { kind, payload }));
        }
    }
}

/// Reads one message.
///
/// # Errors
/// What came is no such message, the peer closed the connection, or the stream fails.
pub fn read_message<R: Read, T: DeserializeOwned>(from: &mut R) -> Result<T, ProtocolError> {
    read(from)?.ok_or(ProtocolError::Truncated("the conversation"))?.message()
}

/// The payload's length and the kind; `None` for a kind to be skipped.
fn parse_header(header: [u8; HEADER]) -> Result<(usize, Option<Kind>), ProtocolError> {
    let [a, b, c, d, kind] = header;
    let length = u32::from_le_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(length) if length <= MAX_PAYLOAD => Ok((length, Kind::from_byte(kind)?)),
        _ => Err(ProtocolError::TooLong(u64::from(length))),
    }
}

/// Fills `buffer`; false when the stream ends before its first byte and may.
fn fill<R: Read>(from: &mut R, buffer: &mut [u8], may_end: bool) -> Result<bool, ProtocolError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if filled == 0 && may_end => return Ok(false),
            Ok(0) => return Err(ProtocolError::Truncated("a frame")),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Cuts frames out of bytes that come in pieces, for whoever polls.
///
/// ```
/// use nestling_protocol::{Decoder, Kind, frame};
///
/// let mut decoder = Decoder::default();
/// decoder.push(&frame::encode(Kind::Stdin, b"ls\n")?);
/// assert_eq!(decoder.next()?.map(|frame| frame.payload), Some(b"ls\n".to_vec()));
/// assert_eq!(decoder.next()?, None);
/// # Ok::<(), nestling_protocol::ProtocolError>(())
/// ```
///
/// It holds what was pushed and not yet taken: whoever takes all frames after each push holds less than one frame.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// What came is no frame. The stream cannot be trusted from there on.
    #[expect(clippy::should_implement_trait, reason = "an iterator would end at the first gap")]
    pub fn next(&mut self) -> Result<Option<Frame>, ProtocolError> {
        loop {
            let rest = self.buffer.get(self.taken..).unwrap_or_default();
            let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
            let (length, kind) = parse_header(*header)?;
            let Some(payload) = rest.get(..length) else { return Ok(None) };
            let frame = kind.map(|kind| Frame { kind, payload: payload.to_vec() });
            self.taken += HEADER + length;
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// Whether a frame has begun and not ended.
    pub fn is_within_frame(&self) -> bool {
        self.taken < self.buffer.len()
    }
}

#[cfg(test)]
mod tests;
