#!/usr/bin/env bash
# Builds virtiofsd, the other end of `--share`, from crates as one static program that runs FROM scratch.
#
#   build.sh OUT_DIR
#
# OUT_DIR/virtiofsd   upstream's program, as released
#
# Needs cargo, gcc, and the static libraries of Debian's libcap-ng-dev and libseccomp-dev. A build is kept in
# ${XDG_CACHE_HOME:-~/.cache}/nestling, by version.
set -euo pipefail

readonly version=1.14.0

[[ $# -eq 1 ]] || { echo 'usage: build.sh OUT_DIR' >&2; exit 1; }
out=$1
kept=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/nestling/virtiofsd-$version

if [[ ! -x $kept/bin/virtiofsd ]]; then
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	# The linker prefers a shared library where it finds one: it looks first where there are only static ones.
	mkdir "$work/lib"
	ln -s "/usr/lib/$(gcc -print-multiarch)"/lib{cap-ng,seccomp}.a "$work/lib/"
	# A directory of its own, so that no .cargo/config.toml has a say.
	cd "$work"
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=$work/lib CARGO_PROFILE_RELEASE_LTO=off \
		CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static -L native=$work/lib" \
		cargo install virtiofsd --version "$version" --locked --target x86_64-unknown-linux-gnu \
		--target-dir "$work/target" --root "$kept"
	cd - >/dev/null
fi
mkdir -p "$out"
# Under another name first: the program may be running.
cp "$kept/bin/virtiofsd" "$out/.virtiofsd.new"
mv "$out/.virtiofsd.new" "$out/virtiofsd"
