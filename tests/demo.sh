#!/bin/busybox sh
# The demo: one VM, its disk, its random numbers, its status. Runs on the machine with VT-x; $NESTLING_DEMO holds the files.
set -eu -o pipefail
nestling=$NESTLING_DEMO/bin/nestling
kernel=$NESTLING_DEMO/debian-6.1
here=$(busybox mktemp -d)
trap 'busybox rm -rf "$here"' EXIT
say() { printf '\n--- %s\n' "$*"; }

# Watches the VM from beside it, and types the line that lets the guest go on.
watch() {
  exec 3>"$here/keyboard"
  until busybox grep -q 'guest: /dev/hwrng says' "$here/console" 2>/dev/null; do busybox sleep 0.2; done
  busybox sleep 1
  say 'nestling status --json: the VM is running'
  $nestling status --json --socket "$here/nestling.sock"
  say 'nestling status: the same for people'
  $nestling status --socket "$here/nestling.sock"
  say 'a line on the console lets the guest power off'
  echo >&3
}

say 'nestling preflight'
$nestling preflight | busybox sed -n 1,2p

say 'nestling run: a stock Debian kernel with a disk; its console and the log follow'
busybox truncate -s 64M "$here/disk.img"
busybox mkfifo "$here/keyboard"
# What the guest does. It travels on the kernel command line, so it has no double quotes and is one line.
# shellcheck disable=SC2016  # it is the guest that expands it
guest='echo; echo guest: $(uname -a);'
guest="$guest echo written by the guest | dd of=/dev/vda bs=512 seek=2 conv=fsync 2>/dev/null;"
guest="$guest echo guest: sector 2 of /dev/vda says: \$(dd if=/dev/vda bs=512 skip=2 count=1 2>/dev/null | head -n 1);"
guest="$guest echo guest: /dev/hwrng says: \$(head -c 16 /dev/hwrng | od -An -tx1);"
guest="$guest read line"
watch &
code=0
$nestling run --kernel "$kernel/vmlinux" --initrd "$kernel/initramfs.cpio" --cpus 2 --memory 256M \
  --disk "$here/disk.img" --socket "$here/nestling.sock" --status-file "$here/last-status.json" \
  -- /bin/sh -c "$guest" <"$here/keyboard" | busybox tee "$here/console" || code=$?

say "exit code $code; the last status, from --status-file: the VM is stopped"
busybox grep -E '^  "(state|since|reason|exit_code|exit_name|message|exits_total)"|"kind": "power-off"' "$here/last-status.json"
say "on the host, sector 2 of the disk image: $(busybox dd if="$here/disk.img" bs=512 skip=2 count=1 2>/dev/null | busybox sed -n 1p)"
exit "$code"
