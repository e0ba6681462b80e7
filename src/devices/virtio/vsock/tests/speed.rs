//! How much slower the way through the device is than a plain Unix socket: a measurement, which `make bench` prints.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use super::worker::{Guest, guest};
use super::*;

const BYTES: u64 = 256 << 20;
const CHUNK: usize = 64 << 10;
const RUNS: usize = 5;

fn write_all(mut to: UnixStream) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let chunk = vec![7; CHUNK];
        (0..BYTES / CHUNK as u64).for_each(|_| to.write_all(&chunk).unwrap());
    })
}

fn read_all(mut from: UnixStream) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut chunk, mut left) = (vec![0; CHUNK], BYTES);
        while left > 0 {
            left -= from.read(&mut chunk).unwrap() as u64;
        }
    })
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

fn plain() -> f64 {
    let (near, far) = UnixStream::pair().unwrap();
    timed(|| {
        let reader = read_all(far);
        write_all(near).join().unwrap();
        reader.join().unwrap();
    })
}

/// The driver takes each buffer as it is used and offers it again; the bytes are in guest memory, and stay there.
fn to_guest(guest: &mut Guest) -> f64 {
    let (program, port) = guest.connected();
    timed(|| {
        let writer = write_all(program.try_clone().unwrap());
        let (mut taken, mut told) = (0_u64, 0);
        while taken < BYTES {
            taken += guest.take_data();
            if taken - told >= u64::from(BUF_ALLOC) / 2 {
                told = taken;
                guest.post(&Header { op: Op::CreditUpdate, fwd_cnt: taken as u32, ..port }, 0);
            }
        }
        writer.join().unwrap();
    })
}

/// The driver sends packets of 64 KiB as fast as it has credit.
fn to_host(guest: &mut Guest) -> f64 {
    let (program, port) = guest.connected();
    timed(|| {
        let reader = read_all(program.try_clone().unwrap());
        let mut sent = 0;
        guest.credit = (256 << 10, 0);
        while sent < BYTES {
            if sent + CHUNK as u64 > guest.credit.0 + guest.credit.1 || guest.transmit_is_full() {
                guest.take_data();
                continue;
            }
            guest.post(&Header { op: Op::Data, len: CHUNK as u32, ..port }, CHUNK as u32);
            sent += CHUNK as u64;
        }
        reader.join().unwrap();
    })
}

#[test]
#[ignore = "a measurement: make bench runs it"]
fn megabytes_per_second_beside_a_plain_unix_socket() {
    let mut rows = [("plain Unix socket", vec![]), ("host to guest", vec![]), ("guest to host", vec![])];
    for _ in 0..RUNS {
        rows[0].1.push(plain());
        rows[1].1.push(to_guest(&mut guest(10)));
        rows[2].1.push(to_host(&mut guest(10)));
    }
    println!("\n| vsock, 256 MiB, chunks of 64 KiB, 4 KiB receive buffers | MB/s | of the plain socket |");
    println!("|---|--:|--:|");
    let mut base = 0.0;
    for (what, mut rates) in rows {
        rates.sort_by(f64::total_cmp);
        let median = rates[RUNS / 2];
        base = if base == 0.0 { median } else { base };
        println!("| {what} | {median:.0} | {:.2} |", median / base);
    }
}
