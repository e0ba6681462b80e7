#!/bin/busybox sh
# The demo: one VM, its disk, its random numbers, its status. Runs on the machine with VT-x; $NESTLING_DEMO holds the files.
set -eu
nestling=$NESTLING_DEMO/bin/nestling
kernel=$NESTLING_DEMO/debian-6.1
here=$(busybox mktemp -d)
trap 'busybox rm -rf "$here"' EXIT
say() { printf '\n--- %s\n' "$*"; }

say 'nestling preflight'
$nestling preflight | busybox head -n 2

say 'nestling run: a stock Debian kernel with a disk; its console follows'
busybox truncate -s 64M "$here/disk.img"
busybox mkfifo "$here/keyboard"
# shellcheck disable=SC2016  # the guest expands it
guest='
echo; echo "guest: $(uname -a)"
echo "written by the guest" | dd of=/dev/vda bs=512 seek=2 conv=fsync 2>/dev/null
echo "guest: /dev/vda sector 2 says: $(dd if=/dev/vda bs=512 skip=2 count=1 2>/dev/null | head -n 1)"
echo "guest: /dev/hwrng: $(head -c 16 /dev/hwrng | od -An -tx1)"
read line'
$nestling run --kernel "$kernel/vmlinux" --initrd "$kernel/initramfs.cpio" --cpus 2 --memory 256M \
  --disk "$here/disk.img" --socket "$here/nestling.sock" --status-file "$here/last-status.json" \
  -- /bin/sh -c "$(echo "$guest" | busybox tr '\n' ';' | busybox sed 's/^;*//; s/"/\x27/g')" \
  <"$here/keyboard" >"$here/console" 2>"$here/log" &
run=$!
exec 3>"$here/keyboard"
busybox tail -f "$here/console" &
tail=$!
until busybox grep -q 'guest: /dev/hwrng' "$here/console"; do
  kill -0 "$run" 2>/dev/null || { busybox cat "$here/log"; exit 1; }
  busybox sleep 0.2
done
busybox sleep 1

say 'nestling status --json: the VM is running'
$nestling status --json --socket "$here/nestling.sock"

say 'nestling status: the same for people'
$nestling status --socket "$here/nestling.sock"

say 'the guest powers off'
echo >&3
code=0
wait "$run" || code=$?
kill "$tail" 2>/dev/null || true
busybox cat "$here/log"

say "exit code $code; the last status, from --status-file: the VM is stopped"
busybox grep -v '^    ' "$here/last-status.json" | busybox head -n 20
busybox sed -n '/"end"/,/^  }/p' "$here/last-status.json"
say "on the host, sector 2 of the disk image: $(busybox dd if="$here/disk.img" bs=512 skip=2 count=1 2>/dev/null | busybox head -n 1)"
