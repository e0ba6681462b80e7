#!/usr/bin/env bash
# What Nestling costs, in tables; docs/benchmarks.md explains them. `make bench` builds everything and runs this.
set -euo pipefail

cd "$(dirname "$0")/.."
out=$PWD/target/x86_64-unknown-linux-gnu
nestling=$out/release/nestling
bench=$out/quick/nestling-bench
assets=$PWD/target/assets
stock=$assets/debian-6.1
own=$assets/nestling

# The guest of a dozen instructions, linked where a kernel may be, which is above 1 MiB.
assemble_payload() {
  as --64 tests/bench/payload.S -o "$1.o"
  ld -n -static -e start -Ttext=0x100000 --section-start=.note.Xen=0x101000 -z noexecstack --build-id=none -o "$1" "$1.o"
}

# This machine's own /dev/kvm, whatever is behind it.
compare_with_qemu() {
  if ! [ -r /dev/kvm ] || ! [ -w /dev/kvm ]; then
    echo 'NOT MEASURED: the comparison with QEMU, because /dev/kvm cannot be opened here'
    return
  fi
  local payload=$PWD/target/bench-payload
  assemble_payload "$payload"
  "$bench" payload --nestling "$nestling" --qemu "$(command -v qemu-system-x86_64)" --kernel "$payload"
}

# VT-x: this machine's, or the emulated node's.
count_linux_boots() {
  local files=("$nestling") guest
  for guest in "$stock" "$own"; do files+=("$guest"/{vmlinux,initramfs.cpio,release}); done
  NESTLING_ASSETS='' NESTLING_NODE_FILES=$(printf '%s\n' "${files[@]}") \
    "$out/quick/nestling-node" runner "$bench" linux --nestling "$nestling" --stock "$stock" --own "$own"
}

# Packets, bytes and blocks through the devices, beside what they stand on. The library has the driver's end only where it is
# asked for, and in a directory of its own, so that no other build gets it. One codegen unit, as the release has it: what is
# measured here is instructions, and most of them are of small functions.
measure_devices() {
  cargo build --quiet --profile quick --config profile.quick.package.nestling.codegen-units=1 \
    -p nestling-bench --features devices --target-dir target/bench
  target/bench/x86_64-unknown-linux-gnu/quick/nestling-bench devices
}

compare_with_qemu
echo
measure_devices
echo
count_linux_boots
