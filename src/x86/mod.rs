//! What is fixed about the machine's CPU and address space: data and functions without state.

pub mod cpuid;
pub mod entry;
pub mod layout;
pub mod msrs;
pub mod paging;
pub mod registers;
