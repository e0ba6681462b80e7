#![allow(clippy::unwrap_used)]

use super::*;

const DEP: &str = "\
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/modern.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/modern.ko:
kernel/loop/a.ko: kernel/loop/b.ko
kernel/loop/b.ko: kernel/loop/a.ko
";

/// A directory as a package leaves it, with these files below `lib/modules/9.9-test`.
fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let kernel = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = kernel.path().join("lib/modules/9.9-test").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    kernel
}

fn with_dep() -> (tempfile::TempDir, ModuleTree) {
    let kernel =
        tree(&[("modules.dep", DEP.as_bytes()), ("modules.builtin", b"kernel/drivers/char/rng-core.ko\n")]);
    let modules = ModuleTree::open(kernel.path()).unwrap();
    (kernel, modules)
}

#[test]
fn what_a_module_needs_loads_before_it_and_once() {
    let (_kernel, modules) = with_dep();

    let order = modules.load_order(&["virtio_pci", "virtio_rng"]).unwrap();

    let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
    assert_eq!(names, ["virtio_ring", "virtio", "modern", "virtio_pci", "virtio_rng"]);
}

#[test]
fn a_name_may_have_either_dash() {
    let (_kernel, modules) = with_dep();

    assert_eq!(modules.load_order(&["virtio-rng"]).unwrap(), modules.load_order(&["virtio_rng"]).unwrap());
}

#[test]
fn what_is_built_in_needs_no_file() {
    let (_kernel, modules) = with_dep();

    assert!(modules.load_order(&["rng-core"]).unwrap().is_empty());
}

#[test]
fn a_module_that_is_nowhere_is_an_error_with_its_name() {
    let (_kernel, modules) = with_dep();

    let error = modules.load_order(&["floppy"]).unwrap_err().to_string();

    assert!(error.contains("has no module floppy"), "{error}");
}

#[test]
fn modules_that_need_each_other_are_an_error() {
    let (_kernel, modules) = with_dep();

    assert!(matches!(modules.load_order(&["a"]), Err(Error::Cycle { .. })));
}

#[test]
fn a_compressed_module_is_plain_in_the_guest() {
    let (_kernel, modules) = with_dep();

    assert_eq!(
        modules.guest_path("kernel/x/virtio_pci.ko.xz"),
        "/lib/modules/9.9-test/kernel/x/virtio_pci.ko"
    );
}

#[test]
fn without_modules_dep_the_files_themselves_are_asked() {
    let kernel = tree(&[
        ("kernel/x/low.ko", b"\x7fELF\0license=GPL\0depends=\0name=low\0"),
        ("kernel/y/high.ko", b"\x7fELF\0license=GPL\0depends=low,built-in\0"),
        ("modules.builtin", b"kernel/built-in.ko\n"),
    ]);

    let order = ModuleTree::open(kernel.path()).unwrap().load_order(&["high"]).unwrap();

    assert_eq!(order, ["kernel/x/low.ko", "kernel/y/high.ko"]);
}

#[test]
fn a_directory_without_modules_or_with_two_kernels_says_so() {
    let empty = tempfile::tempdir().unwrap();
    let two = tree(&[("modules.dep", b"")]);
    std::fs::create_dir_all(two.path().join("lib/modules/9.10/kernel")).unwrap();

    assert!(matches!(ModuleTree::open(empty.path()), Err(Error::NoTree { found: 0, .. })));
    assert!(matches!(ModuleTree::open(two.path()), Err(Error::NoTree { found: 2, .. })));
}

#[test]
fn damaged_compressed_modules_are_errors() {
    let kernel =
        tree(&[("kernel/bad.ko.xz", b"not xz"), ("kernel/bad.ko.zst", b"not zstd"), ("modules.dep", b"")]);
    let modules = ModuleTree::open(kernel.path()).unwrap();

    for path in ["kernel/bad.ko.xz", "kernel/bad.ko.zst"] {
        assert!(matches!(modules.read(path), Err(Error::Unpack { .. })), "{path}");
    }
}
