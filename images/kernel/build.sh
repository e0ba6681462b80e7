#!/usr/bin/env bash
# Builds Nestling's own guest kernel: Debian's linux-source-6.1 with the options of nestling.config, nothing else.
#
#   build.sh OUT_DIR
#
# OUT_DIR/vmlinux   stripped ELF with the PVH note: what `nestling run --kernel` boots quickest
# OUT_DIR/bzImage   the same, for loaders that want one
# OUT_DIR/release   what `uname -r` will say
# OUT_DIR/config    the whole configuration
#
# A build is kept in ${XDG_CACHE_HOME:-~/.cache}/nestling/kernel, by the hash of nestling.config and the version of the
# source; while they are the same it is copied from there. NESTLING_KERNEL_FRESH=1 asks the archive
# for a newer source first. What the compiler said is in that directory's build.log.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=images/kernel/archive.sh
. "$here/archive.sh"

readonly source_package=linux-source-6.1 debian_release=bookworm
# Raise this when the steps below change what comes out of the same options.
readonly recipe=1
readonly results=(vmlinux bzImage release config)
# How many objects a build compiles, for the progress line only.
readonly usual_objects=1400

[[ $# -eq 1 ]] || die "usage: build.sh OUT_DIR"
out=$1
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/nestling/kernel
key=$({ echo "$recipe"; cat "$here/nestling.config"; } | sha256sum | cut -c 1-12)

# built [VERSION]: the directory of a finished build in the cache, the newest if no version is given.
built() {
	local found
	found=$(compgen -G "$cache/$key-${1:-*}/release" | sort -V | tail -n 1) || return 1
	dirname "$found"
}

# deliver DIR: copies a finished build to OUT_DIR, whole or not at all.
deliver() {
	local fresh file
	if [[ -e $out && -n $(ls -A "$out") && ! -s $out/config ]]; then
		die "$out holds something else: give an empty or a new directory"
	fi
	mkdir -p "$(dirname "$out")"
	fresh=$(mktemp -d "$(dirname "$out")/.kernel.XXXXXX")
	for file in "${results[@]}"; do cp --reflink=auto "$1/$file" "$fresh/"; done
	chmod -R u=rwX,go=rX "$fresh"
	rm -rf "$out"
	mv -T "$fresh" "$out"
	say "$out holds $(cat "$out/release")"
}

# configure TREE: nestling.config over allnoconfig; an option that did not come out as written stops the build.
configure() {
	local line name refused=0
	(cd "$1" && ARCH=x86 scripts/kconfig/merge_config.sh -n "$here/nestling.config" >>"$log" 2>&1) ||
		fail "the kernel's configuration cannot be made"
	while read -r line; do
		case $line in
		CONFIG_*) grep -qxF "$line" "$1/.config" && continue ;;
		'# CONFIG_'*' is not set')
			name=${line#'# '}
			grep -q "^${name%% *}=" "$1/.config" || continue
			;;
		*) continue ;;
		esac
		say "nestling.config: \`$line' is not what comes out"
		refused=1
	done <"$here/nestling.config"
	[[ $refused -eq 0 ]] || die "see the options above: this kernel does not know them, or something they depend on is off"
}

# fail TEXT: the end of what the compiler said, then the reason.
fail() {
	grep -nE '(error|Error|\*\*\*)' "$log" | tail -n 15 >&2 || tail -n 15 "$log" >&2
	cp "$log" "$cache/failed.log"
	die "$1; all that was said is in $cache/failed.log"
}

# compile TREE: make, with a sign of life.
compile() {
	local began=$SECONDS told=0 every=15 objects line
	[[ ! -t 2 ]] || every=2
	make -C "$1" -j "$(nproc)" KCFLAGS=-pipe vmlinux bzImage >>"$log" 2>&1 &
	making=$!
	while kill -0 "$making" 2>/dev/null; do
		sleep 1
		[[ $((SECONDS - told)) -ge $every ]] || continue
		told=$SECONDS
		objects=$(grep -cE '^  (CC|AS|LDS) ' "$log" || true)
		line="compiling with $(nproc) jobs: $objects of about $usual_objects objects, $((SECONDS - began)) s"
		if [[ -t 2 ]]; then printf '\r%s: %s ' "${0##*/}" "$line" >&2; else say "$line"; fi
	done
	[[ ! -t 2 ]] || printf '\n' >&2
	wait "$making" || fail "the kernel does not compile"
	making=
	say "compiled in $((SECONDS - began)) s"
}

# build VERSION: the whole way from the source package to a directory in the cache.
build() {
	local tree=$work/tree result=$work/result
	say "fetching $source_package $1"
	mkdir "$work/package" "$tree" "$result"
	archive_unpack "$source_package" "$work/package"
	say "unpacking the source"
	# The bulk of the source is drivers that no virtual machine has; their Kconfig files are needed all the same.
	tar -x -f "$work/package/usr/src/$source_package.tar.xz" -C "$tree" --strip-components=1 \
		--exclude='*/drivers/gpu/drm/*.[ch]' --exclude='*/drivers/net/wireless/*.[ch]' \
		--exclude='*/drivers/media/*.[ch]' --exclude='*/sound/*.[ch]'
	# The same source and options give the same kernel, whoever builds it and when.
	export KBUILD_BUILD_USER=nestling KBUILD_BUILD_HOST=nestling KBUILD_BUILD_VERSION=1
	KBUILD_BUILD_TIMESTAMP=$(date -u -r "$work/package/usr/src/$source_package.tar.xz" '+%Y-%m-%d %H:%M UTC')
	export KBUILD_BUILD_TIMESTAMP
	configure "$tree"
	compile "$tree"
	strip -s -o "$result/vmlinux" "$tree/vmlinux"
	readelf -n "$result/vmlinux" 2>/dev/null | grep -q Xen || fail "the kernel came out without its PVH note"
	cp "$tree/arch/x86/boot/bzImage" "$result/bzImage"
	cp "$tree/.config" "$result/config"
	make -s -C "$tree" kernelrelease >"$result/release"
	cp "$log" "$result/build.log"
	rm -rf "$cache/$key-$1"
	mv -T "$result" "$cache/$key-$1"
}

clean_up() {
	[[ -z $making ]] || kill "$making" 2>/dev/null || true
	[[ -z $work ]] || rm -rf "$work"
}

main() {
	local version found
	making='' work=''
	mkdir -p "$cache"
	if [[ -z ${NESTLING_KERNEL_FRESH:-} ]] && found=$(built); then
		deliver "$found"
		return
	fi
	# Two builds at a time would only be slower; the second finds what the first has made.
	exec 9>"$cache/lock"
	flock -n 9 || { say "waiting for another build in $cache" && flock 9; }
	trap clean_up EXIT
	trap 'exit 130' INT TERM HUP
	work=$(mktemp -d "$cache/.build.XXXXXX")
	log=$work/build.log
	if [[ -z ${NESTLING_KERNEL_FRESH:-} ]] && found=$(built); then
		deliver "$found"
		return
	fi
	need gcc=gcc make=make bc=bc bison=bison flex=flex xz=xz-utils lz4=lz4 strip=binutils \
		/usr/include/gelf.h=libelf-dev /usr/include/stdlib.h=libc6-dev
	say "reading the package lists of Debian $debian_release"
	archive_open "$work/apt" "$debian_release"
	version=$(archive_version "$source_package")
	[[ -n $version ]] || die "the mirror has no $source_package in Debian $debian_release"
	found=$(built "$version") || build "$version"
	deliver "$cache/$key-$version"
}

main
