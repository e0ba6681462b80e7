//! What needs ring 0 (`start.s` has the other side).

unsafe extern "C" {
    fn gate(operation: u64, a: u64, b: u64) -> u64;
}

fn call(operation: u64, a: u64, b: u64) -> u64 {
    // SAFETY: the handler keeps to the C ABI, and each wrapper below passes what its operation wants.
    unsafe { gate(operation, a, b) }
}

/// Sleeps until an interrupt, unless the counter at `address` is no longer `value`.
pub fn halt_while_equal(address: u64, value: u32) {
    call(0, address, value.into());
}

/// Reads a model-specific register.
#[must_use]
pub fn read_msr(index: u32) -> u64 {
    call(1, index.into(), 0)
}

/// Writes a model-specific register.
pub fn write_msr(index: u32, value: u64) {
    call(2, index.into(), value);
}

/// CPUID as ring 0 sees it: `[eax, ebx, ecx, edx]`.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut registers = [0_u32; 4];
    call(3, u64::from(leaf) | u64::from(subleaf) << 32, registers.as_mut_ptr() as u64);
    registers
}

/// Interrupts on or off in ring 3.
pub fn set_interrupts(on: bool) {
    call(4, on.into(), 0);
}

/// Spins in ring 0 with interrupts off.
pub fn spin() -> ! {
    call(5, 0, 0);
    unreachable!()
}

/// Halts with interrupts off.
pub fn halt_forever() -> ! {
    call(6, 0, 0);
    unreachable!()
}

/// A fault with no IDT to handle it.
pub fn triple_fault() -> ! {
    call(7, 0, 0);
    unreachable!()
}

/// Executes ring 0 code at `address`.
pub fn jump(address: u64) -> ! {
    call(8, address, 0);
    unreachable!()
}

/// Reads a port.
#[must_use]
pub fn in8(port: u16) -> u8 {
    call(9, port.into(), 0) as u8
}

/// Writes a port.
pub fn out8(port: u16, value: u8) {
    call(10, port.into(), value.into());
}

/// Writes a port, two bytes at once.
pub fn out16(port: u16, value: u16) {
    call(11, port.into(), value.into());
}

/// Writes bytes to a port with one string instruction.
pub fn out_string(port: u16, bytes: &[u8]) {
    call(12, u64::from(port) | (bytes.len() as u64) << 16, bytes.as_ptr() as u64);
}

/// Reads bytes from a port with one string instruction.
pub fn in_string(port: u16, bytes: &mut [u8]) {
    call(13, u64::from(port) | (bytes.len() as u64) << 16, bytes.as_mut_ptr() as u64);
}
