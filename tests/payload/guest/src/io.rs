//! Memory. Everything is ours and mapped one to one, so an address is a number and access to it is safe by decree: what a
//! test guest breaks is itself.

/// Reads from an address, in one access of `T`'s size.
#[must_use]
pub fn peek<T: Copy>(address: u64) -> T {
    // SAFETY: see the module's decree.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes to an address, in one access of `T`'s size.
pub fn poke<T: Copy>(address: u64, value: T) {
    // SAFETY: see the module's decree.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Writes the low bytes of `value` in one access of 1, 2, 4 or 8 bytes.
pub fn poke_sized(address: u64, value: u64, width: u64) {
    match width {
        1 => poke(address, value as u8),
        2 => poke(address, value as u16),
        4 => poke(address, value as u32),
        _ => poke(address, value),
    }
}
