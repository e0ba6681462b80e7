//! Taps of the kernel, in a network namespace of each test's own.

use std::os::fd::AsRawFd;

use super::*;
use crate::backend::netns::in_namespace;

fn open(source: &TapSource, queues: u16) -> Result<Tap, TapError> {
    Tap::open(source, queues, None)
}

fn named(name: &str) -> TapSource {
    TapSource::Named(name.to_owned())
}

/// Makes a tap that stays, as `ip tuntap add` does.
fn persistent(name: &str, flags: i32) {
    let device = open_device().unwrap();
    ioctl::attach(&device, name, libc::IFF_TAP | libc::IFF_NO_PI | flags).unwrap();
    // SAFETY: TUNSETPERSIST takes its argument by value.
    assert_eq!(unsafe { libc::ioctl(device.as_raw_fd(), 0x4004_54cb, 1) }, 0);
}

fn exists(name: &str) -> bool {
    ioctl::link_flags(&any_socket().unwrap(), name).is_ok()
}

fn is_up(name: &str) -> bool {
    ioctl::link_flags(&any_socket().unwrap(), name).unwrap() & libc::IFF_UP as i16 != 0
}

fn mtu(name: &str) -> i32 {
    ioctl::mtu(&any_socket().unwrap(), name).unwrap()
}

#[test]
fn a_tap_of_our_own_gets_the_first_free_name_and_disappears_with_us() {
    in_namespace(|| {
        let (first, second) = (open(&TapSource::New, 1).unwrap(), open(&TapSource::New, 4).unwrap());
        assert_eq!((first.name(), second.name()), ("nestling0", "nestling1"));
        assert_eq!((first.queue_count(), second.queue_count()), (1, 4));
        assert!(is_up("nestling0") && is_up("nestling1"));
        drop((first, second));
        assert!(!exists("nestling0") && !exists("nestling1"));
    });
}

#[test]
fn a_tap_that_was_there_is_used_and_left_as_it_was() {
    in_namespace(|| {
        persistent("kept", 0);
        let tap = Tap::open(&named("kept"), 1, Some(9000)).unwrap();
        assert_eq!((tap.mtu(), mtu("kept"), is_up("kept")), (9000, 9000, true));
        assert!(matches!(open(&named("kept"), 1), Err(TapError::Busy { .. })));
        tap.set_offloads(Offloads { checksum: true, tso4: true, ..Offloads::NONE }).unwrap();
        drop(tap);
        assert_eq!((mtu("kept"), is_up("kept")), (1500, false));
        assert_eq!(open(&named("kept"), 1).unwrap().mtu(), 1500);
    });
}

#[test]
fn many_queues_need_a_tap_of_many_queues_and_one_takes_either() {
    in_namespace(|| {
        persistent("one", 0);
        persistent("many", libc::IFF_MULTI_QUEUE);
        assert!(matches!(open(&named("one"), 2), Err(TapError::OneQueue { .. })));
        assert!(open(&named("one"), 1).is_ok());
        assert!(open(&named("many"), 1).is_ok());
        let tap = open(&named("many"), 4).unwrap();
        for attached in [true, true, false, false, true] {
            tap.attach_queue(3, attached).unwrap();
            assert_eq!(nix::unistd::read(tap.queue(3).unwrap(), &mut [0; 64]), Err(Errno::EAGAIN));
        }
    });
}

#[test]
fn what_is_no_tap_is_named() {
    in_namespace(|| {
        let text = |result: Result<Tap, TapError>| result.unwrap_err().to_string();
        assert!(text(open(&named("lo"), 1)).contains("lo is not a tap"));
        for name in ["", "sixteen-letters-", "a/b", "a b", "..", "tap%d"] {
            assert!(text(open(&named(name), 1)).contains("1 to 15 bytes"), "{name}");
        }
        assert!(text(Tap::open(&TapSource::New, 1, Some(10))).contains("MTU"));
        for (fd, reason) in [(1, "stdout"), (9999, "no such")] {
            assert!(text(open(&TapSource::Descriptor(fd), 1)).contains(reason));
        }
        let null = File::open("/dev/null").unwrap();
        assert!(text(open(&TapSource::Descriptor(null.as_raw_fd()), 1)).contains("not attached"));
        let plain = open_device().unwrap();
        ioctl::attach(&plain, "plain", libc::IFF_TAP).unwrap();
        assert!(text(open(&TapSource::Descriptor(plain.as_raw_fd()), 1)).contains("IFF_VNET_HDR"));
        assert!(text(open(&TapSource::Descriptor(plain.as_raw_fd()), 2)).contains("one queue"));
    });
}

#[test]
fn an_inherited_descriptor_is_one_queue_of_whatever_tap_it_is() {
    in_namespace(|| {
        let theirs = open(&named("theirs"), 1).unwrap();
        ioctl::set_mtu(&any_socket().unwrap(), "theirs", 1400).unwrap();
        let ours = open(&TapSource::Descriptor(theirs.queue(0).unwrap().as_raw_fd()), 1).unwrap();
        assert_eq!((ours.name(), ours.mtu()), ("theirs", 1400));
        drop(theirs);
        assert!(exists("theirs"), "our descriptor keeps it");
        assert!(ours.set_carrier(false) && ours.set_carrier(true));
        drop(ours);
        assert!(!exists("theirs"));
    });
}

/// Takes CAP_NET_ADMIN from this thread alone, as capset(2) does where no library spreads it.
fn lose_net_admin() {
    let mut header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: version 3 of the call reads a header of 8 bytes and fills 24.
    unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    sets[0] &= !(1 << 12);
    // SAFETY: as above; it reads both.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) }, 0);
}

#[test]
fn without_the_capability_the_mend_is_named() {
    in_namespace(|| {
        lose_net_admin();
        let text = open(&TapSource::New, 1).unwrap_err().to_string();
        assert!(text.contains("the tap nestling may not be made") && text.contains("NET_ADMIN"), "{text}");
    });
}
