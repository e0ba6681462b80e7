//! A directory of the host in the guest, over a virtiofsd that Nestling starts.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::host;
use super::steady::Steady;
use super::vm::{Kernel, Vm};

const READS: u64 = 10_000;

#[test]
fn a_directory_is_read_and_written_both_ways_and_reading_it_costs_no_exit() {
    let directory = SharedDirectory::new();
    fs::write(directory.path().join("hello"), "from the host\n").unwrap();
    fs::write(directory.path().join("numbers"), vec![7; 512 * (READS as usize + 1)]).unwrap();
    let share = format!("tag=data,dir={},cache=never", directory.path().display());
    let read = "dd if=/mnt/numbers of=/dev/null bs=512 count";
    let script = format!(
        "set -e; stty -echo; probe load virtiofs; mount -t virtiofs data /mnt; cat /mnt/hello; probe file-check /mnt; \
         echo from the guest > /mnt/guest; sync; {read}=1; echo WARM; read line; cat /mnt/later; {read}={READS}; \
         echo READ; read line; umount /mnt; echo ALL DONE"
    );
    let mut vm = Vm::start_devices(Kernel::Debian61, &["--share", &share], &script);
    vm.expect("WARM\r\n");
    assert_eq!(fs::read_to_string(directory.path().join("guest")).unwrap(), "from the guest\n");
    fs::write(directory.path().join("later"), "while it runs\n").unwrap();
    print_memory(&vm.status());

    // A pause stops the queues at a boundary, and nothing is lost.
    assert!(vm.ask(&["pause"]).status.success());
    assert!(vm.ask(&["resume"]).status.success());

    let steady = Steady::begin(&vm);
    vm.type_line("");
    vm.expect("READ\r\n");
    let delta = steady.end(&vm, "10,000 reads of a shared file");
    delta.assert_no_exits();
    vm.type_line("");
    let ended = vm.end();
    ended.assert_all_done();
    for said in ["from the host\r\n", "delete=ok\r\n", "while it runs\r\n"] {
        ended.assert_console(said);
    }
    assert_eq!(ended.status["memory"]["backing"], "memfd", "{:#}", ended.status["memory"]);
    assert!(ended.log.contains("shmem_enabled is `never`"), "the cost is not said:\n{}", ended.log);
}

#[test]
fn a_read_only_share_refuses_writes() {
    let directory = SharedDirectory::new();
    fs::write(directory.path().join("hello"), "from the host\n").unwrap();
    let share = format!("tag=data,dir={},readonly=true", directory.path().display());
    let script = "mount -t virtiofs data /mnt && cat /mnt/hello; echo x > /mnt/x || echo REFUSED; umount /mnt; echo ALL DONE";
    let ended = Vm::start_devices(Kernel::Nestling, &["--share", &share], script).end();
    ended.assert_all_done();
    ended.assert_console("from the host\r\n");
    ended.assert_console("REFUSED\r\n");
    assert!(!directory.path().join("x").exists());
}

/// On hugetlb pages all RAM is huge; a virtiofsd that dies takes its device with it and nothing else; the driver gets a new
/// one by resetting the device.
#[test]
fn a_share_on_huge_pages_survives_its_server() {
    let _pool = HugePages::reserve(160);
    let directory = SharedDirectory::new();
    let share = format!("tag=data,dir={}", directory.path().display());
    let script = "set -e; stty -echo; probe load virtio_balloon; echo WARM; read line; \
                  cd /sys/bus/virtio/drivers/virtiofs; n=0; while [ $n -lt 50 ]; do n=$((n+1)); \
                  for d in virtio*; do echo $d > unbind; echo $d > bind; done; done; \
                  cd /; mount -t virtiofs data /mnt; probe file-check /mnt; umount /mnt; echo ALL DONE";
    let mut vm = Vm::start_devices(Kernel::Debian612, &["--share", &share], script);
    vm.expect("WARM\r\n");
    let status = vm.status();
    print_memory(&status);
    assert_eq!(status["memory"]["backing"], "hugetlb memfd");
    assert!(status["memory"]["huge_share"].as_f64().unwrap() > 0.99);
    assert_eq!(device(&status)["state"], "active");

    // What the balloon gave back of the pool could not be had again: a fault would be a SIGBUS.
    let free = || fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap();
    let before = free();
    assert!(vm.ask(&["memory", "200M"]).status.success());
    let shrunk = vm.await_status("a balloon", |status| status["memory"]["balloon"]["balloon_bytes"] != 0);
    let balloon =
        shrunk["devices"].as_array().unwrap().iter().find(|d| d["kind"] == "virtio-balloon").unwrap();
    assert!(balloon["backend"].as_str().unwrap().contains("hugetlb"), "{balloon:#}");
    assert_eq!(balloon["counters"]["bytes_released"], 0, "{balloon:#}");
    assert_eq!(free(), before);
    assert!(vm.ask(&["memory", "256M"]).status.success());

    kill(Pid::from_raw(virtiofsd_of(vm.pid())), Signal::SIGKILL).unwrap();
    let lost = vm.await_status("needs-reset", |status| device(status)["state"] == "needs-reset");
    let backend = device(&lost)["backend"].as_str().unwrap().to_owned();
    assert!(backend.contains("lost"), "{backend}");
    assert_eq!(lost["state"], "running");

    vm.type_line("");
    let ended = vm.end();
    ended.assert_all_done();
    ended.assert_console("delete=ok\r\n");
    assert!(ended.log.contains("the device stopped and waits to be reset"), "{}", ended.log);
}

/// The guest waits for answers that never come, and the VM can be stopped all the same. Many names are listed to the last.
#[test]
fn a_server_that_dies_with_requests_in_flight_does_not_keep_the_vm() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..10_000 {
        fs::write(directory.path().join(format!("file-{number}")), "").unwrap();
    }
    let share = format!("tag=data,dir={}", directory.path().display());
    let script = "set -e; stty -echo; mount -t virtiofs data /mnt; echo NAMES $(ls /mnt | wc -l); \
                  while true; do dd if=/dev/zero of=/mnt/big bs=4k count=1000 conv=fsync; done & \
                  sleep 1; echo WARM; wait";
    let vm = Vm::start_devices(Kernel::Nestling, &["--share", &share], script);
    vm.expect("NAMES 10000\r\n");
    vm.expect("WARM\r\n");
    kill(Pid::from_raw(virtiofsd_of(vm.pid())), Signal::SIGKILL).unwrap();
    vm.await_status("needs-reset", |status| device(status)["state"] == "needs-reset");
    assert!(vm.ask(&["pause"]).status.success());
    assert!(vm.ask(&["resume"]).status.success());
    assert!(vm.ask(&["stop"]).status.success());
    vm.end().assert_code(143);
}

#[test]
fn a_share_without_a_server_is_refused_with_its_mend() {
    let ended =
        Vm::start_devices(Kernel::Debian61, &["--share", "tag=data,socket=/no/such/socket"], "true").end();
    assert_ne!(ended.code, Some(0));
    assert!(ended.log.contains("nobody serves a share at /no/such/socket"), "{}", ended.log);
}

fn device(status: &Value) -> &Value {
    let devices = status["devices"].as_array().unwrap();
    devices.iter().find(|device| device["kind"] == "virtio-fs").unwrap()
}

fn print_memory(status: &Value) {
    println!("  memory: {}", status["memory"]);
}

/// What is shared: a directory on a file system that keeps its place when a listing goes on after something was deleted. Memory
/// does not before Linux 6.6, so where /tmp is in memory, an ext2 of its own is mounted.
struct SharedDirectory {
    mounted: bool,
    directory: tempfile::TempDir,
}

impl SharedDirectory {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kind = nix::sys::statfs::statfs(directory.path()).unwrap().filesystem_type();
        // tmpfs or ramfs: the kernel's rootfs is one of the two.
        let mounted = [nix::sys::statfs::TMPFS_MAGIC, nix::sys::statfs::FsType(0x8584_58f6)].contains(&kind);
        let shared = Self { mounted, directory };
        if mounted {
            let image = host::empty_disk(Path::new("/dev/shm"), &format!("share-{}", std::process::id()), 32);
            let run = |arguments: &[&str]| {
                assert!(host::busybox(arguments).status().unwrap().success(), "{arguments:?}");
            };
            run(&["mke2fs", "-F", image.to_str().unwrap()]);
            run(&[
                "mount",
                "-o",
                "loop",
                "-t",
                "ext2",
                image.to_str().unwrap(),
                shared.path().to_str().unwrap(),
            ]);
            fs::remove_file(image).unwrap();
        }
        shared
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for SharedDirectory {
    fn drop(&mut self) {
        if self.mounted {
            let _ = host::busybox(&["umount", "-d", self.path().to_str().unwrap()]).status();
        }
    }
}

/// The child that is a virtiofsd.
fn virtiofsd_of(pid: i32) -> i32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let children = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
    let children: Vec<i32> = children
        .flat_map(|line| line.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>())
        .collect();
    let is_it =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "virtiofsd\n");
    children.into_iter().find(is_it).expect("no virtiofsd among the children")
}

/// 2 MiB pages for hugetlb, until it is dropped.
struct HugePages(String);

impl HugePages {
    fn reserve(count: u32) -> Self {
        let path = PathBuf::from("/proc/sys/vm/nr_hugepages");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, count.to_string()).unwrap();
        let got: u32 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
        let pages = Self(before);
        assert!(got >= count, "the kernel found only {got} huge pages");
        pages
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write("/proc/sys/vm/nr_hugepages", &self.0);
    }
}
