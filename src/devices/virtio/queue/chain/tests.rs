//! Chains whole and broken, and the bytes in them.

use std::io::{Read, Write};

use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::queue::DeviceQueue;
use crate::devices::virtio::testing::{
    DATA, Driver, HOLE, RAM_BYTES, guest_ram, open_msix, readable, writable,
};

const SIZE: u16 = 8;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
const TABLE: u64 = DATA + 0x8000;

fn queue() -> (Driver, DeviceQueue) {
    let driver = Driver::new(&guest_ram(), 0, SIZE);
    let queue = driver.device(false, &open_msix(1).1);
    (driver, queue)
}

/// Lengths of the buffers of the next chain, and whether it came to its end.
fn walk(queue: &mut DeviceQueue) -> (Vec<u32>, bool) {
    let (mut lengths, mut whole) = (Vec::new(), false);
    for descriptor in queue.pop().unwrap().unwrap() {
        lengths.push(descriptor.len());
        whole = !descriptor.has_next();
    }
    (lengths, whole)
}

#[test]
fn a_chain_is_walked_to_its_end_in_either_table() {
    let (mut driver, mut queue) = queue();
    let chain = [readable(DATA, 1), readable(DATA, 2), writable(DATA, 3)];
    driver.offer(&chain);
    assert_eq!(walk(&mut queue), (vec![1, 2, 3], true));
    driver.offer_indirect(TABLE, &chain);
    assert_eq!(walk(&mut queue), (vec![1, 2, 3], true));
    // Some descriptors first, and then a table.
    driver.store(0, DATA, 9, NEXT, 1);
    driver.store(1, TABLE, 16 * 3, INDIRECT, 0);
    driver.offer_head(0);
    assert_eq!(walk(&mut queue), (vec![9, 1, 2, 3], true));
    // A table may be longer than the queue.
    driver.offer_indirect(TABLE, &[readable(DATA, 1); 20]);
    assert_eq!(walk(&mut queue), (vec![1; 20], true));
}

#[test]
fn a_broken_chain_ends_early_and_says_so() {
    let (driver, mut queue) = queue();
    let mut broken = |head: u16, lengths: &[u32], why: &str| {
        driver.offer_head(head);
        assert_eq!(walk(&mut queue), (lengths.to_vec(), false), "{why}");
    };
    broken(SIZE, &[], "a head outside the table");
    broken(u16::MAX, &[], "a head far outside");
    driver.store(0, DATA, 1, NEXT, SIZE);
    broken(0, &[1], "a next descriptor outside the table");
    driver.store(0, DATA, 1, NEXT, 1);
    driver.store(1, DATA, 1, NEXT, 0);
    broken(0, &[1; SIZE as usize], "a circle");
    driver.store(0, DATA, u32::MAX, NEXT, 1);
    broken(0, &[u32::MAX], "4 GiB and more");
    for (address, len, why) in [
        (TABLE, 0, "an empty table"),
        (TABLE, 24, "one and a half descriptors"),
        (TABLE, 16 << 16, "more than 65535"),
        (HOLE, 16, "a table in a hole"),
        (RAM_BYTES - 16, 32, "a table that reaches into the hole"),
        (u64::MAX - 15, 16, "a table at the end of all addresses"),
    ] {
        driver.store(0, address, len, INDIRECT, 0);
        broken(0, &[], why);
    }
    driver.store(0, TABLE, 16, INDIRECT, 0);
    let memory = queue.memory().clone();
    let table = Driver::new(&memory, 0, SIZE).addresses()[0];
    let mut nested = [0; 16];
    memory.read_slice(&mut nested, GuestAddress(table)).unwrap();
    memory.write_slice(&nested, GuestAddress(TABLE)).unwrap();
    driver.offer_head(0);
    assert_eq!(walk(&mut queue), (vec![], false), "a table in a table");
}

#[test]
fn bytes_are_read_and_written_across_buffers_in_the_right_direction_only() {
    let (mut driver, mut queue) = queue();
    let memory = queue.memory().clone();
    memory.write_slice(b"abcdefgh", GuestAddress(DATA)).unwrap();
    let out = DATA + 0x100;
    driver.offer(&[
        readable(DATA, 3),
        writable(out, 2),
        readable(DATA + 3, 0),
        readable(DATA + 3, 4),
        writable(out + 2, 3),
    ]);
    let chain = queue.pop().unwrap().unwrap();
    let (mut reader, mut writer) = (chain.clone().reader().unwrap(), chain.writer().unwrap());
    assert_eq!((reader.available_bytes(), writer.available_bytes()), (7, 5));
    let mut first = [0; 2];
    reader.read_exact(&mut first).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!((&first, &rest[..], reader.available_bytes()), (b"ab", &b"cdefg"[..], 0));
    assert_eq!(writer.write(b"1").unwrap(), 1);
    assert_eq!(writer.write(b"23456789").unwrap(), 4, "no more than there is room for");
    assert_eq!((writer.available_bytes(), writer.bytes_written()), (0, 5));
    assert_eq!(writer.write(b"0").unwrap(), 0);
    let mut got = [0; 6];
    memory.read_slice(&mut got, GuestAddress(out)).unwrap();
    assert_eq!(&got, b"12345\0");
}

#[test]
fn a_buffer_outside_memory_is_a_fault_for_who_uses_it() {
    for address in [HOLE, HOLE - 1, u64::MAX] {
        let (mut driver, mut queue) = queue();
        driver.offer(&[readable(DATA, 2), writable(address, 2)]);
        let chain = queue.pop().unwrap().unwrap();
        assert!(chain.clone().writer().is_err(), "{address:x}");
        assert_eq!(chain.reader().unwrap().available_bytes(), 2);
    }
}
