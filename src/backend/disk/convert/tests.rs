use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::super::qcow2::tests::qemu_img;
use super::super::{Backing, Held, NewImage, RawDisk, create, info};
use super::*;

const MIB: u64 = 1 << 20;

fn image(path: &Path, format: Format) -> Image {
    Image { path: path.into(), format: Some(format), access: Access::READ, follow_backing: true }
}

fn new(path: PathBuf, format: Format, mib: u64) -> NewImage {
    NewImage { path, format, size_bytes: Some(mib * MIB), backing: None, force: false }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_disk_keeps_its_bytes_through_every_format_and_its_holes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    create(&new(path("a.img"), Format::Raw, 64)).unwrap();
    let disk = RawDisk::open(&path("a.img"), Access::WRITE).unwrap();
    for (offset, value, bytes) in [(MIB + 512, 1, 70_000), (40 * MIB, 2, 3 << 20), (64 * MIB - 512, 3, 512)] {
        disk.write_at(&Buffers::of_slice(&mut vec![value; bytes]), offset).unwrap();
    }
    drop(disk);
    let mut heard = Vec::new();
    let steps =
        [("a.img", Format::Raw, "b.qcow2", Format::Qcow2), ("b.qcow2", Format::Qcow2, "c.img", Format::Raw)];
    for (from, from_format, to, to_format) in steps {
        let source = image(&path(from), from_format);
        let mut hear = |done, all| {
            heard.push((done, all));
            ControlFlow::Continue(())
        };
        let bytes = convert(&source, &path(to), to_format, false, &mut hear).unwrap();
        assert_eq!(bytes, 64 * MIB);
        assert!(path(to).metadata().unwrap().blocks() * 512 < 6 * MIB, "{to} is sparse");
        assert_eq!(heard.first(), Some(&(0, 64 * MIB)));
        assert_eq!(heard.last(), Some(&(64 * MIB, 64 * MIB)));
        assert!(heard.is_sorted());
        heard.clear();
    }
    assert!(fs::read(path("a.img")).unwrap() == fs::read(path("c.img")).unwrap());
    qemu_img(&["check", "-q", &text("b.qcow2")]);
    qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", &text("a.img"), &text("b.qcow2")]);
    assert_eq!(names(directory.path()), ["a.img", "b.qcow2", "c.img"], "no draft stays");
}

#[test]
fn nothing_is_replaced_without_force_and_nothing_in_use_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    create(&new(path("a.img"), Format::Raw, 1)).unwrap();
    fs::write(path("b.img"), "precious").unwrap();
    let source = image(&path("a.img"), Format::Raw);
    let refused = convert(&source, &path("b.img"), Format::Raw, false, &mut |_, _| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(refused.to_string().contains("exists: choose another name, or replace it with --force"));
    assert!(matches!(create(&new(path("b.img"), Format::Qcow2, 1)), Err(DiskError::Exists(_))));
    let itself = convert(&source, &path("a.img"), Format::Qcow2, true, &mut |_, _| ControlFlow::Continue(()))
        .unwrap_err();
    let text = itself.to_string();
    assert!(
        text.ends_with(
            "a.img is what is being copied, or a backing file of it: choose another name for the copy"
        ),
        "{text}"
    );
    assert_eq!(fs::read(path("b.img")).unwrap(), b"precious");
    convert(&source, &path("b.img"), Format::Raw, true, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(path("b.img").metadata().unwrap().len(), MIB);
    fs::create_dir(path("folder")).unwrap();
    let folder = NewImage { force: true, ..new(path("folder"), Format::Raw, 1) };
    assert!(create(&folder).unwrap_err().to_string().contains("no regular file"));
    let nowhere = create(&new(path("gone/a.img"), Format::Raw, 1)).unwrap_err().to_string();
    assert!(nowhere.contains("gone/a.img cannot be written"), "{nowhere}");
    assert_eq!(names(directory.path()), ["a.img", "b.img", "folder"]);
}

#[test]
fn who_is_stopped_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("a.img"), vec![1; 3 << 20]).unwrap();
    let source = image(&path("a.img"), Format::Raw);
    let mut stop = |done, _| if done < MIB { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    let stopped = convert(&source, &path("b.img"), Format::Raw, false, &mut stop).unwrap_err();
    assert!(matches!(stopped, DiskError::Stopped(_)), "{stopped}");
    assert_eq!(names(directory.path()), ["a.img"]);
}

#[test]
fn what_is_made_is_told_of_with_its_chain_and_its_locks() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    create(&new(path("base.img"), Format::Raw, 3)).unwrap();
    let backing = Backing { name: "base.img".into(), format: None };
    let top = NewImage {
        size_bytes: None,
        backing: Some(backing.clone()),
        ..new(path("top.qcow2"), Format::Qcow2, 0)
    };
    assert_eq!(create(&top).unwrap(), 3 * MIB);
    qemu_img(&["check", "-q", path("top.qcow2").to_str().unwrap()]);
    let open = image(&path("top.qcow2"), Format::Qcow2).open().unwrap();
    let found = info(&path("top.qcow2"), None).unwrap();
    let [top_layer, base] = &found.layers[..] else { panic!("{found:?}") };
    assert_eq!((top_layer.format, top_layer.virtual_bytes), (Format::Qcow2, 3 * MIB));
    assert_eq!((top_layer.version, top_layer.cluster_bytes), (Some(3), Some(64 << 10)));
    assert_eq!((top_layer.backing.as_deref(), &found.broken), (Some("base.img"), &None));
    assert_eq!((base.format, base.virtual_bytes, base.lock), (Format::Raw, 3 * MIB, Held::Shared));
    assert!(base.held_by[0].starts_with(&std::process::id().to_string()), "{:?}", base.held_by);
    drop(open);
    assert_eq!(info(&path("base.img"), None).unwrap().layers[0].lock, Held::Free);
    fs::remove_file(path("base.img")).unwrap();
    let broken = info(&path("top.qcow2"), None).unwrap().broken.unwrap();
    assert!(broken.contains("base.img"), "{broken}");
    for (wrong, part) in [
        (
            NewImage { backing: Some(backing.clone()), ..new(path("x"), Format::Qcow2, 1) },
            "base.img cannot be opened",
        ),
        (NewImage { size_bytes: None, ..new(path("x"), Format::Raw, 1) }, "needs a size"),
        (new(path("x"), Format::Raw, 0), "at least one sector"),
        (
            NewImage { size_bytes: Some(u64::MAX), ..new(path("x"), Format::Raw, 1) },
            "no disk can be that large",
        ),
    ] {
        let text = create(&wrong).unwrap_err().to_string();
        assert!(text.contains(part), "{part:?} in {text}");
    }
    create(&new(path("base.img"), Format::Raw, 3)).unwrap();
    let raw = NewImage { backing: Some(backing), ..new(path("x"), Format::Raw, 1) };
    assert!(create(&raw).unwrap_err().to_string().contains("say --format qcow2"));
    assert_eq!(names(directory.path()), ["base.img", "top.qcow2"]);
}
