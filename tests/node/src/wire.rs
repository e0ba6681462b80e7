//! The records that PID 1 sends out through Bochs' debug port.
//!
//! The port's bytes share a stream with what Bochs itself prints, so each record begins with a mark:
//!
//! ```text
//! mark (4 bytes) | kind (1) | length (4, little endian) | payload | '\n'
//! ```
//!
//! The line feed makes Bochs flush. Bytes between records are Bochs' own words.

const MARK: [u8; 4] = [0xf5, b'n', b'v', 0x02];
const HEADER: usize = MARK.len() + 5;

/// The longest payload of one record.
pub(crate) const MAX_PAYLOAD: usize = 64 << 10;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A stage was reached: nanoseconds since power-on (8 bytes), then text.
    Stage,
    /// Bytes that the program wrote to its standard output.
    Stdout,
    /// Bytes that the program wrote to its standard error.
    Stderr,
    /// A collected file begins: a `job::FileHeader` as JSON.
    FileBegin,
    /// The next bytes of that file.
    FileData,
    /// Lines of the kernel's log.
    KernelLog,
    /// The program has ended: its exit code (4 bytes). The last record of a good life.
    Exit,
    /// PID 1 cannot go on: text. The last record of a bad one.
    Failure,
}

const KINDS: [(Kind, u8); 8] = [
    (Kind::Stage, b'S'),
    (Kind::Stdout, b'O'),
    (Kind::Stderr, b'E'),
    (Kind::FileBegin, b'F'),
    (Kind::FileData, b'D'),
    (Kind::KernelLog, b'K'),
    (Kind::Exit, b'X'),
    (Kind::Failure, b'!'),
];

/// Builds one record. A payload longer than [`MAX_PAYLOAD`] is cut: senders send in pieces.
pub(crate) fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
    let code = KINDS.iter().find(|(k, _)| *k == kind).map_or(b'?', |(_, code)| *code);
    let mut record = Vec::with_capacity(HEADER + payload.len() + 1);
    record.extend_from_slice(&MARK);
    record.push(code);
    record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    record.extend_from_slice(payload);
    record.push(b'\n');
    record
}

/// What the stream holds next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// One whole record.
    Record(Kind, Vec<u8>),
    /// Bytes outside any record.
    Stray(Vec<u8>),
}

/// Takes the stream apart, in whatever pieces it arrives.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    pending: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes that arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.start);
        self.start = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// The next item that is complete.
    pub(crate) fn next(&mut self) -> Option<Item> {
        let rest = &self.pending[self.start..];
        let (item, taken) = match find_mark(rest) {
            0 => whole_record(rest)?,
            stray => (Item::Stray(rest[..stray].to_vec()), stray),
        };
        self.start += taken;
        Some(item)
    }
}

/// Where a mark begins, or might begin when more bytes come; the length if nowhere.
fn find_mark(bytes: &[u8]) -> usize {
    (0..bytes.len()).find(|&at| bytes[at..].iter().zip(MARK).all(|(a, b)| *a == b)).unwrap_or(bytes.len())
}

/// The record at the start of `bytes` and its size, once all of it is there.
fn whole_record(bytes: &[u8]) -> Option<(Item, usize)> {
    let header = bytes.get(..HEADER)?;
    let code = header[MARK.len()];
    let length = u32::from_le_bytes([header[5], header[6], header[7], header[8]]) as usize;
    let Some((kind, _)) = KINDS.iter().find(|(_, c)| *c == code).filter(|_| length <= MAX_PAYLOAD) else {
        return Some((Item::Stray(bytes[..1].to_vec()), 1));
    };
    let payload = bytes.get(HEADER..HEADER + length)?;
    bytes.get(HEADER + length)?;
    Some((Item::Record(*kind, payload.to_vec()), HEADER + length + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(decoder: &mut Decoder) -> Vec<Item> {
        std::iter::from_fn(|| decoder.next()).collect()
    }

    #[test]
    fn records_pass_through_in_pieces_of_any_size() {
        let all_bytes: Vec<u8> = (0..=255).collect();
        let mut stream = b"Bochs says hello\n".to_vec();
        stream.extend(encode(Kind::Stdout, &all_bytes));
        stream.extend(encode(Kind::Stderr, b""));
        stream.extend(encode(Kind::Exit, &7i32.to_le_bytes()));
        stream.extend(b"Bochs says goodbye\n");
        for piece in [1, 2, 7, 64, stream.len()] {
            let mut decoder = Decoder::default();
            let mut records = Vec::new();
            let mut stray = Vec::new();
            for bytes in stream.chunks(piece) {
                decoder.push(bytes);
                for item in items(&mut decoder) {
                    match item {
                        Item::Record(kind, payload) => records.push((kind, payload)),
                        Item::Stray(bytes) => stray.extend(bytes),
                    }
                }
            }
            assert_eq!(
                records,
                [
                    (Kind::Stdout, all_bytes.clone()),
                    (Kind::Stderr, vec![]),
                    (Kind::Exit, 7i32.to_le_bytes().to_vec())
                ]
            );
            assert_eq!(stray, b"Bochs says hello\nBochs says goodbye\n");
        }
    }

    #[test]
    fn a_record_that_holds_a_mark_is_one_record() {
        let inner = encode(Kind::Stdout, b"inner");
        let mut decoder = Decoder::default();
        decoder.push(&encode(Kind::Stdout, &inner));
        assert_eq!(items(&mut decoder), [Item::Record(Kind::Stdout, inner)]);
    }

    #[test]
    fn a_mark_with_nonsense_behind_it_is_skipped() {
        let mut stream = MARK.to_vec();
        stream.extend([b'S', 0xff, 0xff, 0xff, 0xff]);
        stream.extend(encode(Kind::Failure, b"no"));
        let mut decoder = Decoder::default();
        decoder.push(&stream);
        assert_eq!(items(&mut decoder).last(), Some(&Item::Record(Kind::Failure, b"no".to_vec())));
    }
}
