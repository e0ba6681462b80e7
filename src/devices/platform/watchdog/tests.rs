use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;

use super::*;

const CONTROL_PORT: u64 = CONTROL;
/// Longer than a busy machine lets a thread wait.
const PATIENCE: Duration = Duration::from_secs(30);

fn watchdog() -> (Watchdog, Receiver<Duration>) {
    let (sender, receiver) = channel();
    let sender = Mutex::new(sender);
    let watchdog = Watchdog::new(move |silent| sender.lock().unwrap().send(silent).unwrap());
    (watchdog, receiver)
}

fn write(watchdog: &Watchdog, offset: u64, value: u32) {
    watchdog.write(offset, &value.to_le_bytes());
}

fn read(watchdog: &Watchdog, offset: u64) -> u32 {
    let mut data = [0; 4];
    watchdog.read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn the_registers_say_what_the_driver_set() {
    let (watchdog, _expired) = watchdog();
    assert_eq!((read(&watchdog, CONTROL_PORT), read(&watchdog, TIMEOUT)), (0, 30_000));
    assert!(watchdog.shared.lock().thread.is_none(), "nobody waits for a watchdog that was never started");
    write(&watchdog, TIMEOUT, 60_000);
    assert_eq!((read(&watchdog, TIMEOUT), read(&watchdog, REMAINING)), (60_000, 60_000));
    write(&watchdog, CONTROL_PORT, 1);
    assert_eq!(read(&watchdog, CONTROL_PORT), 1);
    assert!(watchdog.is_running());
    write(&watchdog, REMAINING, 0);
    assert!((1..=60_000).contains(&read(&watchdog, REMAINING)));
    write(&watchdog, CONTROL_PORT, 0);
    assert_eq!(read(&watchdog, CONTROL_PORT), 0);
}

#[test]
fn an_expiry_is_told_once_with_the_time_of_silence() {
    let (watchdog, expired) = watchdog();
    write(&watchdog, TIMEOUT, 5);
    write(&watchdog, CONTROL_PORT, 1);
    assert_eq!(expired.recv_timeout(PATIENCE).unwrap(), Duration::from_millis(5));
    assert!(!watchdog.is_running());
    drop(watchdog);
    assert!(expired.recv().is_err(), "told twice");
}

#[test]
fn a_shorter_timeout_wakes_the_thread_that_waits_for_a_longer_one() {
    let (watchdog, expired) = watchdog();
    write(&watchdog, CONTROL_PORT, 1);
    write(&watchdog, TIMEOUT, 5);
    assert_eq!(expired.recv_timeout(PATIENCE).unwrap(), Duration::from_millis(5));
}

#[test]
fn a_paused_machine_s_watchdog_waits_for_its_resume() {
    let (watchdog, expired) = watchdog();
    write(&watchdog, TIMEOUT, 100);
    watchdog.pause();
    write(&watchdog, CONTROL_PORT, 1);
    assert!(expired.recv_timeout(Duration::from_millis(200)).is_err());
    watchdog.resume();
    assert!(expired.recv_timeout(PATIENCE).is_ok());
}

#[test]
fn a_machine_that_is_taken_down_does_not_expire() {
    let (watchdog, expired) = watchdog();
    write(&watchdog, TIMEOUT, 50);
    write(&watchdog, CONTROL_PORT, 1);
    watchdog.shut_down();
    write(&watchdog, CONTROL_PORT, 0);
    write(&watchdog, CONTROL_PORT, 1);
    assert!(expired.recv_timeout(Duration::from_millis(150)).is_err());
}

proptest! {
    /// Whatever is written where, in whatever width: only a 32-bit access to a register does something, and a timeout is
    /// never longer than an hour.
    #[test]
    fn noise_breaks_nothing(accesses in prop::collection::vec((0..16_u64, prop::collection::vec(any::<u8>(), 0..9)), 0..60)) {
        let (watchdog, _expired) = watchdog();
        let mut running = false;
        for (offset, data) in accesses {
            let mut back = data.clone();
            watchdog.read(offset, &mut back);
            let is_register = data.len() == 4 && [CONTROL_PORT, TIMEOUT, REMAINING].contains(&offset);
            prop_assert!(is_register || back.iter().all(|&byte| byte == 0xff));
            // A timeout that expires at once would make this test's outcome a matter of timing.
            if offset == TIMEOUT && data.len() == 4 && data[2] == 0 && data[3] == 0 {
                continue;
            }
            watchdog.write(offset, &data);
            match (offset, data.as_slice()) {
                (CONTROL_PORT, [1, 0, 0, 0]) => running = true,
                (CONTROL_PORT, [0, 0, 0, 0]) => running = false,
                _ => {}
            }
            prop_assert_eq!(watchdog.is_running(), running);
            prop_assert!((1..=3_600_000).contains(&read(&watchdog, TIMEOUT)));
            prop_assert!(read(&watchdog, REMAINING) <= read(&watchdog, TIMEOUT));
        }
    }
}
