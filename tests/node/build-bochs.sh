#!/bin/bash
# Builds Bochs with VMX from the source package of Debian trixie. Usage: build-bochs.sh OUT_DIR
#
# OUT_DIR/bochs appears only when it is complete. About 2.5 CPU-minutes. Needs g++, make, patch, xz and an apt that can
# reach its own Debian mirror: the source comes from there, checked by apt against the archive's signed index.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
work=$(mktemp -d "$out/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# The mirror that apt uses already, however it is written down: prefer Debian's own archive over its security archive.
# shellcheck disable=SC2016 # apt expands these, not the shell
mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
  awk '$1 == "Debian" { own = own ? own : $2 } $NF ~ /\/debian\/?$/ { named = named ? named : $NF } END { print own ? own : named }')
if [ -z "$mirror" ]; then
  echo "build-bochs: apt knows no Debian mirror: add one to /etc/apt/sources.list.d/ and run apt-get update" >&2
  exit 1
fi

# A package list of our own, so that the system's stays untouched.
mkdir -p lists/partial cache/archives/partial
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >trixie.list
own_apt() {
  apt-get -qq -o Dir::Etc::SourceList="$work/trixie.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}
echo "build-bochs: source package from $mirror"
own_apt update
own_apt source --download-only --tar-only bochs >/dev/null
mkdir source
tar -xJf bochs_*.orig.tar.xz -C source --strip-components=1
cd source
for change in "$here"/bochs/*.patch; do
  patch --quiet -p1 <"$change"
done

echo "build-bochs: configure"
quiet() { "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; echo "build-bochs: failed: $*" >&2; exit 1; }; }
quiet ./configure --with-nogui --enable-x86-64 --enable-cpu-level=6 --enable-vmx=2 --enable-svm --enable-avx \
  --enable-evex --enable-all-optimizations --enable-long-phy-address --enable-a20-pin --enable-pci \
  --disable-plugins --disable-debugger --disable-readline --disable-docbook --disable-cdrom --disable-voodoo \
  CFLAGS="-O2 -w" CXXFLAGS="-O2 -fno-strict-aliasing -w"

total=$(make -n 2>/dev/null | grep -c -e ' -c ')
progress() {
  local last=-1 done_files percent
  while sleep 2; do
    done_files=$(find . -name '*.o' | wc -l)
    # shellcheck disable=SC2017 # in steps of ten
    percent=$((done_files * 10 / total * 10))
    [ "$percent" -eq "$last" ] || echo "build-bochs: compiled $percent % of $total files (${SECONDS} s)"
    last=$percent
  done
}
progress &
watcher=$!
trap 'kill "$watcher" 2>/dev/null || true; rm -rf "$work"' EXIT
quiet make -j"$(nproc)"

strip -o "$work/bochs" bochs
mv "$work/bochs" "$out/bochs"
echo "build-bochs: $out/bochs, ${SECONDS} s"
