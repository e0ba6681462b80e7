use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::frame::{self, Kind};

fn written(path: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    send(path, &mut stream).unwrap();
    stream
}

fn taken(stream: &[u8], to: &Path, options: Options) -> Result<Totals, FilesError> {
    receive(&mut &*stream, Destination::open(to, None)?, options, &mut |_| {})
}

/// A stream of these entries, each file with these bytes.
fn tree(entries: &[Entry]) -> Vec<u8> {
    let mut stream = Vec::new();
    for entry in entries {
        frame::write_message(&mut stream, entry).unwrap();
        if matches!(entry, Entry::File { .. }) {
            frame::write(&mut stream, Kind::Data, b"new").unwrap();
            frame::write(&mut stream, Kind::Data, b"").unwrap();
        }
    }
    stream
}

fn file(name: &str) -> Entry {
    Entry::File { name: name.into(), mode: 0o4755, size: 0, modified: None }
}

fn directory(name: &str) -> Entry {
    Entry::Directory { name: name.into(), mode: 0o755, modified: None }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_tree_arrives_with_its_modes_times_and_links() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("source");
    std::fs::create_dir_all(source.join("a/empty")).unwrap();
    std::fs::write(source.join("a/big"), vec![7; 200_000]).unwrap();
    std::fs::write(source.join("a/run"), "#!/bin/sh\n").unwrap();
    symlink("../nowhere", source.join("link")).unwrap();
    std::fs::set_permissions(source.join("a/run"), PermissionsExt::from_mode(0o4751)).unwrap();
    // A directory that its own mode does not let be filled.
    std::fs::set_permissions(source.join("a"), PermissionsExt::from_mode(0o550)).unwrap();
    std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();

    let totals = taken(&written(&source), &scratch.path().join("copy"), Options::TRUSTED).unwrap();

    let copy = scratch.path().join("copy");
    assert_eq!((totals.entries, totals.bytes, totals.skipped), (6, 200_010, 1));
    assert_eq!(std::fs::read(copy.join("a/big")).unwrap(), vec![7; 200_000]);
    assert_eq!(std::fs::read_link(copy.join("link")).unwrap(), Path::new("../nowhere"));
    for name in ["", "a", "a/run", "a/big", "a/empty"] {
        let [from, to] = [&source, &copy].map(|root| std::fs::metadata(root.join(name)).unwrap());
        assert_eq!((from.mode(), from.mtime_nsec()), (to.mode(), to.mtime_nsec()), "{name}");
    }
    assert!(!copy.join("socket").exists());
}

#[test]
fn an_existing_directory_takes_the_tree_in_and_another_name_becomes_it() {
    let scratch = tempfile::tempdir().unwrap();
    let stream = tree(&[file("sent"), Entry::End(Totals::default())]);
    std::fs::create_dir(scratch.path().join("in")).unwrap();

    taken(&stream, &scratch.path().join("in"), Options::UNTRUSTED).unwrap();
    taken(&stream, &scratch.path().join("as"), Options::UNTRUSTED).unwrap();
    let called = Destination::open(&scratch.path().join("in"), Some("asked-for".as_ref())).unwrap();
    receive(&mut stream.as_slice(), called, Options::UNTRUSTED, &mut |_| {}).unwrap();
    let no_directory = taken(&stream, &scratch.path().join("not-there/"), Options::UNTRUSTED);
    let no_parent = taken(&stream, &scratch.path().join("not/there"), Options::UNTRUSTED);

    assert!(scratch.path().join("in/sent").is_file());
    assert!(scratch.path().join("in/asked-for").is_file());
    assert_eq!(std::fs::read(scratch.path().join("as")).unwrap(), b"new");
    assert!(no_directory.unwrap_err().to_string().starts_with("cannot open the directory"));
    assert!(no_parent.unwrap_err().to_string().ends_with("No such file or directory"));
}

#[test]
fn a_file_takes_the_place_of_another_and_of_a_link_but_writes_through_none() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    std::fs::write(&outside, "old").unwrap();
    std::fs::create_dir(scratch.path().join("to")).unwrap();
    symlink(&outside, scratch.path().join("to/link")).unwrap();

    let stream = tree(&[file("link"), Entry::End(Totals::default())]);
    taken(&stream, &scratch.path().join("to"), Options::UNTRUSTED).unwrap();

    assert_eq!(std::fs::read(&outside).unwrap(), b"old");
    assert_eq!(std::fs::read(scratch.path().join("to/link")).unwrap(), b"new");
    let mode = std::fs::metadata(scratch.path().join("to/link")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755, "no set-user-ID from whoever is not trusted");
}

#[test]
fn no_name_and_no_link_leads_out() {
    for name in ["..", ".", "", "/etc", "a/b", "../x", &"n".repeat(256)] {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("to")).unwrap();
        for entry in [file(name), directory(name), Entry::Symlink { name: name.into(), target: "/".into() }] {
            let stream = tree(&[directory("d"), entry]);
            let refused = taken(&stream, &scratch.path().join("to"), Options::UNTRUSTED);
            assert!(matches!(refused, Err(FilesError::BadName(_))), "{name}: {refused:?}");
        }
        assert_eq!(names(scratch.path()), ["to"]);
    }
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(scratch.path().join("to")).unwrap();
    std::fs::create_dir_all(scratch.path().join("outside")).unwrap();
    let away = Entry::Symlink { name: "away".into(), target: "../../outside".into() };

    let refused = taken(
        &tree(&[directory("d"), away, directory("away"), file("x")]),
        &scratch.path().join("to"),
        Options::UNTRUSTED,
    );

    assert!(refused.unwrap_err().to_string().starts_with("cannot open the directory"));
    assert!(names(&scratch.path().join("outside")).is_empty());
}

#[test]
fn what_is_no_tree_is_refused_and_leaves_no_half_file() {
    let end = Entry::End(Totals::default());
    let cases = [
        (tree(&[Entry::Up]), "the peer sent no tree: it goes up from its root"),
        (tree(std::slice::from_ref(&end)), "the peer sent no tree: it ends within"),
        (tree(&[directory("d"), end.clone()]), "the peer sent no tree: it ends within"),
        (tree(&[file("a"), file("b")]), "the peer sent no tree: it has two roots"),
        (tree(&[]), "the peer closed the connection in the middle of the conversation"),
    ];
    for (stream, message) in cases {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(taken(&stream, scratch.path(), Options::UNTRUSTED).unwrap_err().to_string(), message);
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut cut = tree(&[directory("d"), file("whole"), file("half")]);
    cut.truncate(cut.len() - 5);
    let failed = tree(&[Entry::File { name: "f".into(), mode: 0, size: 9, modified: None }]);
    let mut failed = failed[..failed.len() - 5].to_vec();
    let failure = Failure::new(FailureKind::Failed, "cannot read /x: Input/output error");
    frame::write_message(&mut failed, &Entry::Failed(failure)).unwrap();

    let first = taken(&cut, scratch.path(), Options::UNTRUSTED).unwrap_err().to_string();
    let second = taken(&failed, scratch.path(), Options::UNTRUSTED).unwrap_err().to_string();

    assert_eq!(first, "the peer closed the connection in the middle of a file");
    assert_eq!(second, "cannot read /x: Input/output error");
    assert_eq!(names(&scratch.path().join("d")), ["whole"]);
    assert_eq!(names(scratch.path()), ["d"]);
}

#[test]
fn depth_is_bounded_at_both_ends() {
    let scratch = tempfile::tempdir().unwrap();
    let deep = vec![directory("d"); MAX_DEPTH + 1];
    let path = deep.iter().fold(scratch.path().join("source"), |path, _| path.join("d"));
    std::fs::create_dir_all(path).unwrap();
    std::fs::create_dir_all(scratch.path().join("to")).unwrap();

    let refused = taken(&tree(&deep), &scratch.path().join("to"), Options::UNTRUSTED);
    let unsent = send(&scratch.path().join("source"), &mut Vec::new());

    assert!(matches!(refused, Err(FilesError::TooDeep(_))));
    assert!(matches!(unsent, Err(FilesError::TooDeep(_))));
}

#[test]
fn a_sender_that_fails_says_so_in_the_stream() {
    let mut stream = Vec::new();
    let error = send(Path::new("/nowhere/at/all"), &mut stream).unwrap_err();

    let Ok(Entry::Failed(failure)) = frame::read_message(&mut stream.as_slice()) else {
        panic!("no failure")
    };
    assert_eq!(failure.kind, FailureKind::NotFound);
    assert_eq!(failure.message, error.to_string());
    assert_eq!(failure.message, "cannot open /nowhere/at/all: No such file or directory");
}
