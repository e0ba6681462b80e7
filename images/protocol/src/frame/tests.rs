use proptest::prelude::*;

use super::*;
use crate::{Exec, FromAgent, FromHost, Input, Opening, Program, Request, Response};

fn frames() -> impl Strategy<Value = Vec<(Kind, Vec<u8>)>> {
    let kind = prop::sample::select(vec![Kind::Message, Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Data]);
    prop::collection::vec((kind, prop::collection::vec(any::<u8>(), 0..300)), 0..8)
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut(frames in frames(), cut in 1_usize..64) {
        let mut stream = Vec::new();
        for (kind, payload) in &frames {
            write(&mut stream, *kind, payload).unwrap();
        }

        let (mut decoder, mut decoded) = (Decoder::default(), Vec::new());
        for piece in stream.chunks(cut) {
            decoder.push(piece);
            while let Some(frame) = decoder.next().unwrap() {
                decoded.push((frame.kind, frame.payload));
            }
        }
        let (mut read_from, mut blocking) = (stream.as_slice(), Vec::new());
        while let Some(frame) = read(&mut read_from).unwrap() {
            blocking.push((frame.kind, frame.payload));
        }

        prop_assert!(!decoder.is_within_frame());
        prop_assert_eq!(&decoded, &frames);
        prop_assert_eq!(&blocking, &frames);
    }

    #[test]
    fn garbage_is_an_error_or_waits_and_both_readers_agree(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        let mut from = bytes.as_slice();
        loop {
            match (decoder.next(), read(&mut from)) {
                (Ok(Some(one)), Ok(Some(other))) => prop_assert_eq!(one, other),
                (Ok(None), Ok(None)) => { prop_assert!(!decoder.is_within_frame()); break }
                (Ok(None), Err(ProtocolError::Truncated(_))) => { prop_assert!(decoder.is_within_frame()); break }
                (Err(one), Err(other)) => { prop_assert_eq!(one.to_string(), other.to_string()); break }
                (one, other) => prop_assert!(false, "{:?} and {:?}", one, other),
            }
        }
    }

    #[test]
    fn no_json_makes_a_message_panic(json in "[{\\[\"a-z:,0-9\\]} ]{0,200}") {
        let frame = Frame { kind: Kind::Message, payload: json.into_bytes() };
        drop(frame.message::<FromAgent>());
        drop(frame.message::<FromHost>());
        drop(frame.message::<Opening>());
        drop(frame.message::<Response>());
        drop(frame.message::<crate::files::Entry>());
    }

    #[test]
    fn a_program_comes_out_as_it_went_in(
        words in prop::collection::vec(prop::collection::vec(1_u8.., 0..20), 1..5),
        status in any::<i32>(),
        stdin in any::<bool>(),
    ) {
        use std::os::unix::ffi::OsStringExt;
        let argv: Vec<crate::ByteString> =
            words.into_iter().map(|word| std::ffi::OsString::from_vec(word).into()).collect();
        let program = Program { env: vec![("A".into(), argv[0].clone())], argv, ..Program::default() };
        let sent = Opening::from(Request::Exec(Exec { program, terminal: None, stdin }));
        let mut stream = encode_message(&sent).unwrap();
        let outcome = Response::Exited { outcome: crate::Outcome::Status(status) };
        stream.extend(encode_message(&outcome).unwrap());

        let mut from = stream.as_slice();
        prop_assert_eq!(read_message::<_, Opening>(&mut from).unwrap(), sent);
        prop_assert_eq!(read_message::<_, Response>(&mut from).unwrap(), outcome);
    }
}

#[test]
fn bytes_are_laid_out_as_documented() {
    assert_eq!(encode(Kind::Stdin, b"hi").unwrap(), b"\x02\0\0\0\x10hi");
    assert_eq!(
        encode_message(&Response::Started { pid: 212 }).unwrap(),
        b"\x1c\0\0\0\x01{\"type\":\"started\",\"pid\":212}"
    );
}

#[test]
fn a_frame_that_is_too_long_is_refused_before_its_payload() {
    let length = u32::try_from(MAX_PAYLOAD + 1).unwrap().to_le_bytes();
    let mut decoder = Decoder::default();
    decoder.push(&length);
    assert_eq!(decoder.next().unwrap(), None);
    decoder.push(&[Kind::Data as u8]);

    assert!(matches!(decoder.next(), Err(ProtocolError::TooLong(65_537))));
    assert!(matches!(encode(Kind::Data, &vec![0; MAX_PAYLOAD + 1]), Err(ProtocolError::TooLong(65_537))));
    assert!(encode(Kind::Data, &vec![0; MAX_PAYLOAD]).is_ok());
}

#[test]
fn optional_kinds_are_skipped_and_others_are_not() {
    let mut stream = vec![3, 0, 0, 0, 0x80, 1, 2, 3];
    stream.extend(encode(Kind::Stdout, b"x").unwrap());
    stream.extend([0, 0, 0, 0, 0x7f]);

    let mut from = stream.as_slice();
    assert_eq!(read(&mut from).unwrap().unwrap().payload, b"x");
    assert_eq!(read(&mut from).unwrap_err().to_string(), "a frame of the unknown kind 0x7f");
}

#[test]
fn what_a_later_version_adds_is_ignored_or_named() {
    let message = |json: &str| Frame { kind: Kind::Message, payload: json.as_bytes().to_vec() };

    let event = message(r#"{"type":"screenshot","png":"…"}"#);
    assert_eq!(event.message::<FromAgent>().unwrap(), FromAgent::Unknown);
    let request = message(r#"{"version":1,"request":{"type":"trace","pid":1}}"#);
    assert_eq!(request.message::<Opening>().unwrap().request, Request::Unknown);
    let field = message(r#"{"type":"resize","rows":1,"columns":2,"pixels":3}"#);
    assert_eq!(field.message::<Input>().unwrap(), Input::Resize(crate::TerminalSize { rows: 1, columns: 2 }));
    let order = message(r#"{"type":"order","id":7,"order":{"type":"dance"}}"#);
    assert_eq!(order.message::<FromHost>().unwrap(), FromHost::Order { id: 7, order: crate::Order::Unknown });
    let welcome =
        message(r#"{"type":"welcome","version":1,"configuration":{"ready":{"rule":{"type":"moon"}}}}"#);
    let FromHost::Welcome(welcome) = welcome.message().unwrap() else { panic!("no welcome") };
    assert_eq!(welcome.configuration.ready.unwrap().rule, crate::Rule::Unknown);
    let capabilities: Vec<crate::Capability> = serde_json::from_str(r#"["exec","teleport"]"#).unwrap();
    assert_eq!(capabilities, [crate::Capability::Exec, crate::Capability::Unknown]);
}

#[test]
fn the_newest_common_version_is_taken() {
    let versions = |oldest, newest| crate::Versions { oldest, newest };

    assert_eq!(versions(1, 3).common(versions(2, 5)).unwrap(), 3);
    assert_eq!(versions(1, 1).common(versions(1, 9)).unwrap(), 1);
    let none = versions(1, 2).common(versions(3, 4)).unwrap_err();
    assert_eq!(none.to_string(), "no common version: this end speaks 1 to 2, the peer 3 to 4");
}

#[test]
fn json_that_is_nested_without_end_is_an_error() {
    let frame = Frame { kind: Kind::Message, payload: b"[".repeat(MAX_PAYLOAD) };

    assert!(matches!(frame.message::<FromHost>(), Err(ProtocolError::BadMessage(_))));
}
