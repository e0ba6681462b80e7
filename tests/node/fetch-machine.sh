#!/bin/bash
# Fetches what the emulated machine starts with from Debian's packages. Usage: fetch-machine.sh OUT_DIR
#
# OUT_DIR gets: BIOS-bochs-latest and vgabios.bin (the firmware), vmlinuz, release (its version), and modules/ (every
# module of that kernel, flat, uncompressed). Nothing is installed on this system.
set -euo pipefail

out=$(mkdir -p "$1" && cd "$1" && pwd)
work=$(mktemp -d "$out/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-.*-cloud-amd64$/ { print $2; exit }')
if [ -z "$kernel" ]; then
  echo "fetch-machine: apt knows no linux-image-cloud-amd64: check the Debian entries in /etc/apt/sources.list*, then run apt-get update" >&2
  exit 1
fi
echo "fetch-machine: packages bochsbios, vgabios, $kernel"
apt-get -qq -o APT::Sandbox::User=root download bochsbios vgabios "$kernel"
for package in *.deb; do
  dpkg-deb --extract "$package" tree
done

mkdir "$out/modules"
find tree -name '*.ko*' -exec mv -t "$out/modules" {} +
find "$out/modules" -name '*.xz' -exec xz --decompress {} +
mv tree/usr/share/bochs/BIOS-bochs-latest tree/usr/share/vgabios/vgabios.bin "$out"
mv tree/boot/vmlinuz-* "$out/vmlinuz"
echo "${kernel#linux-image-}" >"$out/release"
