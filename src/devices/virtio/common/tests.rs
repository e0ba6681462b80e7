//! The structure as a driver writes it and reads it back.

use super::*;
use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC};

fn common() -> (CommonConfig, RegisterPages) {
    let registers = RegisterPages::new(1).unwrap();
    let features = 1 << 9 | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
    (CommonConfig::new(registers.clone(), features, &[256, 64], 3), registers)
}

fn negotiate(common: &mut CommonConfig, features: u64) -> u8 {
    common.write(DEVICE_STATUS, &[1]);
    common.write(DEVICE_STATUS, &[3]);
    for half in [0_u32, 1] {
        common.write(DRIVER_FEATURE_SELECT, &half.to_le_bytes());
        common.write(DRIVER_FEATURE, &((features >> (32 * half)) as u32).to_le_bytes());
    }
    common.write(DEVICE_STATUS, &[0xb]);
    common.status
}

#[test]
fn features_are_shown_by_half_and_agreed_on_once() {
    let (mut common, registers) = common();
    assert_eq!(registers.u32(DEVICE_FEATURE), (1 << 9) | (1 << 28) | (1 << 29));
    common.write(DEVICE_FEATURE_SELECT, &1_u32.to_le_bytes());
    assert_eq!(registers.u32(DEVICE_FEATURE), 1);
    common.write(DEVICE_FEATURE_SELECT, &2_u32.to_le_bytes());
    assert_eq!(registers.u32(DEVICE_FEATURE), 0);
    assert_eq!(negotiate(&mut common, F_VERSION_1 | F_EVENT_IDX), 0xb);
    common.write(DRIVER_FEATURE, &u32::MAX.to_le_bytes());
    assert_eq!(common.accepted(), F_VERSION_1 | F_EVENT_IDX, "too late to change");
}

#[test]
fn unoffered_or_legacy_features_are_not_ok() {
    for features in [F_VERSION_1 | 1, F_EVENT_IDX, 0, u64::MAX] {
        let (mut common, _) = common();
        assert_eq!(negotiate(&mut common, features) & status::FEATURES_OK, 0, "{features:#x}");
        assert_eq!(common.write(DEVICE_STATUS, &[7]), Follow::Nothing, "DRIVER_OK without FEATURES_OK");
    }
}

#[test]
fn queues_are_set_up_one_by_one_and_frozen_when_enabled() {
    let (mut common, registers) = common();
    negotiate(&mut common, F_VERSION_1);
    common.write(QUEUE_SELECT, &[1, 0]);
    assert_eq!(registers.u16(QUEUE_SIZE), 64);
    assert_eq!(registers.u16(QUEUE_NOTIFY_OFFSET), 1);
    for bad in [0_u16, 3, 128, 0x8000] {
        common.write(QUEUE_SIZE, &bad.to_le_bytes());
        assert_eq!(registers.u16(QUEUE_SIZE), 64);
    }
    common.write(QUEUE_SIZE, &[32, 0]);
    common.write(QUEUE_VECTOR, &[3, 0]);
    assert_eq!(registers.u16(QUEUE_VECTOR), NO_VECTOR, "there are three vectors: 0, 1, 2");
    common.write(QUEUE_VECTOR, &[2, 0]);
    common.write(QUEUE_DESC, &0x1000_u32.to_le_bytes());
    common.write(QUEUE_DESC + 4, &1_u32.to_le_bytes());
    common.write(QUEUE_ENABLE, &[1, 0]);
    common.write(QUEUE_DESC, &0xffff_u32.to_le_bytes());
    let queue = common.queues()[1];
    assert_eq!((queue.size, queue.vector, queue.desc, queue.enabled), (32, 2, 0x1_0000_1000, true));
    assert_eq!(common.write(DEVICE_STATUS, &[0xf]), Follow::Start);
    assert_eq!(common.write(DEVICE_STATUS, &[0xf]), Follow::Nothing, "only once");
    assert_eq!(common.write(DEVICE_STATUS, &[0xb]), Follow::Nothing);
    assert_eq!(registers.u8(DEVICE_STATUS), 0xf, "a bit once set stays");
    assert_eq!(common.write(DEVICE_STATUS, &[0x4f]), Follow::Nothing);
    assert_eq!(registers.u8(DEVICE_STATUS), 0xf, "the driver cannot say that the device needs a reset");
    assert_eq!(common.write(DEVICE_STATUS, &[0]), Follow::Reset);
    common.reset();
    assert_eq!(registers.u8(DEVICE_STATUS), 0);
    assert!(!common.queues()[1].enabled);
}

#[test]
fn absent_queues_and_odd_accesses_change_nothing() {
    let (mut common, registers) = common();
    common.write(QUEUE_SELECT, &[9, 0]);
    assert_eq!(registers.u16(QUEUE_SIZE), 0);
    common.write(QUEUE_ENABLE, &[1, 0]);
    for offset in 0..80 {
        for len in [3, 5, 8] {
            assert_eq!(common.write(offset, &[0xff; 8][..len]), Follow::Nothing);
        }
    }
    assert!(common.queues().iter().all(|queue| !queue.enabled && queue.desc == 0));
}

#[test]
fn needs_reset_stays_until_the_driver_resets() {
    let (mut common, registers) = common();
    negotiate(&mut common, F_VERSION_1);
    assert_eq!(common.alarm().raise(), NO_VECTOR);
    common.write(DEVICE_STATUS, &[0xf]);
    assert_eq!(registers.u8(DEVICE_STATUS) & status::NEEDS_RESET, status::NEEDS_RESET);
    common.reset();
    assert_eq!(registers.u8(DEVICE_STATUS), 0);
}
