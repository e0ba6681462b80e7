#!/usr/bin/env bash
# Gets Debian's stock cloud kernel, as it is, ready to be a guest:
#
#   debian.sh 6.1|6.12 OUT_DIR
#
# OUT_DIR/bzImage                as the package ships it
# OUT_DIR/vmlinux                the ELF file inside it, for the PVH entry
# OUT_DIR/release                what `uname -r` will say
# OUT_DIR/lib/modules/RELEASE/   the modules a virtual machine (and a nested one's host) can use, and the index files
#
# A finished OUT_DIR is left alone, so a second call returns at once; remove it to get a newer kernel. One that another
# version of this script made (OUT_DIR/recipe says which) is made again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=images/kernel/archive.sh
. "$here/archive.sh"

[[ $# -eq 2 ]] || die "usage: debian.sh 6.1|6.12 OUT_DIR"
version=$1 out=$2
recipe=$(cat "$here"/{debian,archive}.sh | sha256sum | cut -c1-16)

# Where a guest's (or a nested host's) drivers live; all else is hardware that a microVM does not have.
kept_modules=(
	kernel/arch/x86/{kvm,crypto}
	kernel/block kernel/crypto kernel/lib kernel/virt
	kernel/drivers/{acpi,block,char,crypto/virtio,firmware,input,misc,ptp,rtc,vhost,virt,virtio,watchdog}
	kernel/drivers/net/{tap.ko,tun.ko,veth.ko,virtio_net.ko,net_failover.ko,macvtap.ko,macvlan.ko,vsockmon.ko}
	kernel/fs/{autofs,ext4,fat,fuse,isofs,jbd2,nls,overlayfs,squashfs,xfs,btrfs,mbcache.ko,binfmt_misc.ko,efivarfs}
	kernel/net/{802,8021q,bridge,core,ipv4,ipv6,llc,netfilter,packet,unix,vmw_vsock}
)

# bytes FILE OFFSET LENGTH
bytes() { dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$2" count="$3" status=none; }

# number FILE OFFSET WIDTH: a little-endian field.
number() { bytes "$1" "$2" "$3" | od -An -v -t "u$3" | tr -d ' '; }

# payload BZIMAGE: the kernel's ELF file, found by the setup header's payload_offset and payload_length
# (the x86 boot protocol, 2.08 and later) and unpacked by its magic number.
payload() {
	local image=$1 offset length stream
	[[ $(bytes "$image" 514 4) == HdrS ]] || die "$image is not a bzImage: no HdrS at offset 514"
	offset=$((($(number "$image" 497 1) + 1) * 512 + $(number "$image" 584 4)))
	length=$(number "$image" 588 4)
	# The last four bytes of a packed payload are the unpacked size, which is no part of the stream.
	stream=$((length - 4))
	case $(bytes "$image" "$offset" 4 | od -An -v -t x1 | tr -d ' ') in
	28b52ffd) bytes "$image" "$offset" "$stream" | zstd -q -d -c ;;
	02214c18) bytes "$image" "$offset" "$stream" | lz4 -q -d -c ;;
	fd377a58) bytes "$image" "$offset" "$stream" | xz -q -d -c ;;
	1f8b*) bytes "$image" "$offset" "$stream" | gzip -q -d -c ;;
	7f454c46) bytes "$image" "$offset" "$length" ;;
	*) die "the payload of $image is packed in a way this script does not know" ;;
	esac
}

# keep TREE RELEASE: moves the modules named above, and the index files, from an unpacked package to lib/modules.
keep() {
	local from=$1/lib/modules/$2 to=$1/../lib/modules/$2 path found
	mkdir -p "$to"
	cp "$from"/modules.{builtin,builtin.modinfo,order} "$to"
	for path in "${kept_modules[@]}"; do
		# A module's file may be packed.
		for found in "$from/$path" "$from/$path".{xz,zst}; do
			[[ -e $found ]] || continue
			mkdir -p "$to/$(dirname "$path")"
			mv "$found" "$to/$(dirname "$path")/"
		done
	done
	# A packaged tree has no modules.dep: it is made on the machine that installs it. So here.
	PATH=$PATH:/usr/sbin:/sbin depmod -b "$1/.." "$2" 2>&1 | { grep -v 'could not open modules.builtin' >&2 || true; }
}

main() {
	local work package release tree stale=
	if [[ -s $out/release && -s $out/vmlinux && -s $out/bzImage ]]; then
		if [[ $(cat "$out/recipe" 2>/dev/null) == "$recipe" ]]; then
			say "$out holds $(cat "$out/release") already"
			return
		fi
		say "$out was made by another version of this script: making it again"
		stale=$out
	fi
	[[ -n $stale || ! -e $out || -z $(ls -A "$out") ]] || die "$out holds something else: give an empty or a new directory"
	case $version in
	6.1) releases=(bookworm) pattern='linux-image-6\.1\.[0-9]+-[0-9]+-cloud-amd64' ;;
	6.12) releases=(bookworm trixie) pattern='linux-image-6\.12\.[0-9]+\+.*-cloud-amd64' ;;
	*) die "there is a recipe for 6.1 and 6.12, not for $version" ;;
	esac
	need lz4=lz4 zstd=zstd xz=xz-utils depmod=kmod

	mkdir -p "$(dirname "$out")"
	work=$(mktemp -d "$(dirname "$out")/.debian-kernel.XXXXXX")
	# shellcheck disable=SC2064 # the path of now is meant
	trap "rm -rf '$work'" EXIT

	say "reading the package lists of Debian ${releases[*]}"
	archive_open "$work/apt" "${releases[@]}"
	package=$(archive_newest "$pattern")
	[[ -n $package ]] || die "the mirror has no cloud kernel $version in Debian ${releases[*]}"
	release=${package#linux-image-}

	say "fetching $package"
	tree=$work/tree
	mkdir "$tree" "$work/done"
	archive_unpack "$package" "$tree"
	# Since trixie /lib is a link to /usr/lib, and the package says so by its paths.
	[[ -d $tree/lib/modules ]] || { mkdir -p "$tree/lib" && mv "$tree/usr/lib/modules" "$tree/lib/modules"; }

	say "unpacking vmlinux, keeping the modules a virtual machine can use"
	mv "$tree" "$work/done/tree"
	tree=$work/done/tree
	mv "$tree/boot/vmlinuz-$release" "$work/done/bzImage"
	payload "$work/done/bzImage" >"$work/done/vmlinux"
	keep "$tree" "$release"
	rm -rf "$tree"
	echo "$release" >"$work/done/release"
	echo "$recipe" >"$work/done/recipe"
	chmod -R u=rwX,go=rX "$work/done"

	[[ -z $stale ]] || rm -rf "$stale"
	[[ ! -d $out ]] || rmdir "$out"
	mv -T "$work/done" "$out"
	say "$out holds $release ($(du -sh "$out" | cut -f1))"
}

main
