//! Control messages (virtio 1.2 §5.3.6.2).

/// One message. A name follows `PortName` in the same buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    /// The port's number.
    pub(super) id: u32,
    pub(super) event: Event,
    pub(super) value: u16,
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// From the driver: it is ready for ports, or is not.
    DeviceReady,
    /// To the driver: there is a port.
    PortAdd,
    /// From the driver: it has the port, or cannot have it.
    PortReady,
    /// Both ways: the other side has the port open.
    PortOpen,
    /// To the driver: what the port is called.
    PortName,
    /// One that a driver does not send, or that nobody knows.
    Other(u16),
}

impl Event {
    const CODES: [(Self, u16); 5] = [
        (Self::DeviceReady, 0),
        (Self::PortAdd, 1),
        (Self::PortReady, 3),
        (Self::PortOpen, 6),
        (Self::PortName, 7),
    ];

    fn from_code(code: u16) -> Self {
        Self::CODES.iter().find(|(_, known)| *known == code).map_or(Self::Other(code), |(event, _)| *event)
    }

    fn code(self) -> u16 {
        match self {
            Self::Other(code) => code,
            _ => Self::CODES.iter().find(|(event, _)| *event == self).map_or(u16::MAX, |(_, code)| *code),
        }
    }
}

impl Message {
    /// Bytes of `struct virtio_console_control`.
    pub(super) const LEN: usize = 8;

    /// Reads a message; what follows it is ignored, as the specification asks.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk::<4>()?;
        let (event, rest) = rest.split_first_chunk::<2>()?;
        let (value, _) = rest.split_first_chunk::<2>()?;
        Some(Self {
            id: u32::from_le_bytes(*id),
            event: Event::from_code(u16::from_le_bytes(*event)),
            value: u16::from_le_bytes(*value),
        })
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        let (event, value) = (self.event.code().to_le_bytes(), self.value.to_le_bytes());
        [&self.id.to_le_bytes()[..], &event, &value].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_written_as_the_specification_lays_them_out() {
        let bytes = [0x04, 0x03, 0x02, 0x01, 6, 0, 1, 0];
        let message = Message { id: 0x0102_0304, event: Event::PortOpen, value: 1 };
        assert_eq!(message.bytes(), bytes);
        assert_eq!(Message::parse(&bytes), Some(message));
        assert_eq!(Message::parse(&[&bytes[..], b"more"].concat()), Some(message));
        assert_eq!(Message::parse(&bytes[..7]), None);
        for code in 0..=u16::MAX {
            assert_eq!(Event::from_code(code).code(), code);
        }
    }
}
