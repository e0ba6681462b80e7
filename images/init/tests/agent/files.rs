//! Files in and out.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nestling_protocol::files::{Destination, Entry, Options, Totals, receive, send};
use nestling_protocol::{ByteString, FailureKind, Kind, Request, Response, frame};

use super::host::{Guest, Session, until};

const MIB: usize = 1 << 20;

fn path(path: &Path) -> ByteString {
    path.as_os_str().into()
}

fn put(guest: &Guest, to: &Path) -> Session {
    guest.session(Request::Put { path: path(to), owner: None })
}

fn put_whole(guest: &Guest, from: &Path, to: &Path) -> Totals {
    let mut session = put(guest, to);
    assert_eq!(session.response(), Response::Accepted);
    send(from, &mut session.stream).unwrap();
    match session.response() {
        Response::Done(totals) => totals,
        other => panic!("{other:?}"),
    }
}

fn get_whole(guest: &Guest, from: &Path, to: &Path) -> Totals {
    let mut session = guest.session(Request::Get { path: path(from) });
    assert_eq!(session.response(), Response::Accepted);
    let to = Destination::open(to, from.file_name()).unwrap();
    receive(&mut session.stream, to, Options::UNTRUSTED, &mut |_| {}).unwrap()
}

/// What `cksum` says, which is not our own code.
fn checksum(file: &Path) -> String {
    let output =
        std::process::Command::new("cksum").stdin(std::fs::File::open(file).unwrap()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn sixty_four_mebibytes_go_in_and_out_unchanged() {
    let guest = Guest::idle();
    let [source, inside, back] = ["source", "inside", "back"].map(|name| guest.path(name));
    let mut file = std::fs::File::create(&source).unwrap();
    let mut number = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..64 {
        let mebibyte: Vec<u8> = (0..MIB / 8)
            .flat_map(|_| {
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                number.to_le_bytes()
            })
            .collect();
        file.write_all(&mebibyte).unwrap();
    }

    let put = put_whole(&guest, &source, &inside);
    let got = get_whole(&guest, &inside, &back);

    assert_eq!((put.bytes, got.bytes), (64 * MIB as u64, 64 * MIB as u64));
    assert_eq!(checksum(&source), checksum(&inside));
    assert_eq!(checksum(&source), checksum(&back));
}

#[test]
fn a_tree_goes_in_and_out_with_modes_and_links() {
    let guest = Guest::idle();
    let source = guest.path("source");
    std::fs::create_dir_all(source.join("bin/empty")).unwrap();
    std::fs::write(source.join("bin/run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(source.join("bin/run"), PermissionsExt::from_mode(0o751)).unwrap();
    std::fs::set_permissions(source.join("bin/empty"), PermissionsExt::from_mode(0o700)).unwrap();
    symlink("bin/run", source.join("link")).unwrap();
    std::fs::create_dir(guest.path("inside")).unwrap();

    let put = put_whole(&guest, &source, &guest.path("inside"));
    let got = get_whole(&guest, &guest.path("inside/source"), &guest.path("back"));

    assert_eq!((put.entries, got.entries), (5, 5));
    for name in ["bin", "bin/run", "bin/empty"] {
        let mode = |root: &str| std::fs::metadata(guest.path(root).join(name)).unwrap().permissions().mode();
        assert_eq!(mode("source"), mode("inside/source"), "{name}");
        assert_eq!(mode("source"), mode("back"), "{name}");
    }
    assert_eq!(std::fs::read_link(guest.path("back/link")).unwrap(), Path::new("bin/run"));
}

#[test]
fn a_file_is_replaced_at_once_or_not_at_all() {
    let guest = Guest::idle();
    let target = guest.path("target");
    std::fs::write(&target, "old").unwrap();
    let reader = std::fs::File::open(&target).unwrap();

    let mut session = put(&guest, &target);
    assert_eq!(session.response(), Response::Accepted);
    let entry = Entry::File { name: "x".into(), mode: 0o644, size: 6, modified: None };
    frame::write_message(&mut session.stream, &entry).unwrap();
    frame::write(&mut session.stream, Kind::Data, b"new").unwrap();
    let names = || {
        let entries = std::fs::read_dir(guest.directory.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    until("the agent has the first half", || names().iter().any(|name| name.starts_with(".nestling")));
    assert_eq!(std::fs::read(&target).unwrap(), b"old");
    drop(session);

    until("the half file is gone", || !names().iter().any(|name| name.starts_with(".nestling")));
    assert_eq!(std::fs::read(&target).unwrap(), b"old");
    std::fs::write(guest.path("other"), "newer").unwrap();
    put_whole(&guest, &guest.path("other"), &target);
    assert_eq!(std::fs::read(&target).unwrap(), b"newer");
    assert_eq!(std::io::read_to_string(reader).unwrap(), "old");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let guest = Guest::idle();
    std::fs::create_dir(guest.path("to")).unwrap();
    for name in ["..", "../x", "/etc/x", "a/b"] {
        let mut session = put(&guest, &guest.path("to"));
        assert_eq!(session.response(), Response::Accepted);
        let entry = Entry::File { name: name.into(), mode: 0o644, size: 1, modified: None };
        frame::write_message(&mut session.stream, &entry).unwrap();
        // What follows is taken in: the refusal must arrive all the same.
        for _ in 0..100 {
            frame::write(&mut session.stream, Kind::Data, &[7; 10_000]).unwrap();
        }
        session.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let failure = session.failure();
        assert_eq!(failure.kind, FailureKind::BadRequest);
        assert_eq!(failure.message, format!("the name {name:?} is not one component of a path"));
    }
    assert_eq!(std::fs::read_dir(guest.path("to")).unwrap().count(), 0);
}

#[test]
fn what_is_not_there_is_said_before_anything_is_sent() {
    let guest = Guest::idle();

    let failure = put(&guest, &guest.path("no/such/place")).failure();
    assert_eq!(failure.kind, FailureKind::NotFound);
    let failure = guest.session(Request::Get { path: "/no/such/file".into() }).failure();
    assert_eq!(failure.message, "cannot open /no/such/file: No such file or directory");
    let failure = guest.session(Request::Get { path: "relative".into() }).failure();
    assert_eq!(failure.message, "relative is no absolute path");
    let owner = Some("no-such-user".into());
    let failure = guest.session(Request::Put { path: path(&guest.path("x")), owner }).failure();
    assert_eq!(failure.message, "the guest has no user no-such-user");
}
