//! PCI configuration space, MSI-X, the virtio transport and its workers: every register access a vCPU can make.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use nestling::devices::virtio::rng::Rng;
use nestling::devices::virtio::testing::registers;

fuzz_target!(|bytes: &[u8]| registers::play(Arc::new(Rng::default()), bytes));
