//! What is fixed about the machine's CPU and address space: data and functions without state.

pub mod layout;
