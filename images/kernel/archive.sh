# Debian's archive seen from this machine: sourced by debian.sh and build.sh, which set `set -euo pipefail`.
#
# The mirror is the one in the machine's own apt sources; the package lists are kept apart, in a directory of the
# caller's, so a kernel can be had for a release that this machine does not run, and without being root.
# shellcheck shell=bash

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
	say "$*"
	exit 1
}

# need COMMAND=PACKAGE…: installs, through apt-get, the Debian packages whose command is missing.
need() {
	local pair missing=()
	for pair in "$@"; do
		# A command may also be named by a file it comes with (a header, say).
		case ${pair%%=*} in
		/*) [[ -e ${pair%%=*} ]] || missing+=("${pair#*=}") ;;
		*) PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}") ;;
		esac
	done
	[[ ${#missing[@]} -gt 0 ]] || return 0
	local as_root=()
	if [[ $EUID -ne 0 ]]; then
		command -v sudo >/dev/null || die "missing Debian packages: ${missing[*]}; as root: apt-get install ${missing[*]}"
		as_root=(sudo)
	fi
	say "installing Debian packages: ${missing[*]}"
	"${as_root[@]}" apt-get -qq update >&2 || say "apt-get update failed; trying with the package lists at hand"
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq install -y -o DPkg::Lock::Timeout=300 --no-install-recommends "${missing[@]}" >/dev/null ||
		die "cannot install ${missing[*]}; mend apt's sources, or install them by hand, and run this again"
}

# The first mirror in apt's sources (of either format) whose suite matches an extended regular expression.
mirror_of() {
	apt-get update --print-uris 2>/dev/null |
		sed -nE "s#^'([^']*)/dists/($1)/InRelease' .*#\1#p" | sed -n 1p
}

# archive_open DIR RELEASE…: fetches the package lists of these Debian releases (and their security suites) into DIR.
# Sets ARCHIVE, the apt options that look there and nowhere else.
archive_open() {
	local dir main security keyring=/usr/share/keyrings/debian-archive-keyring.gpg release
	# apt takes a relative path for one below its own root.
	dir=$(realpath -m "$1")
	shift
	[[ -r $keyring ]] || die "no $keyring: install the Debian package debian-archive-keyring"
	main=$(mirror_of '[a-z]+')
	security=$(mirror_of '[a-z]+-security')
	[[ -n $main ]] || die "apt's sources name no Debian mirror: add one to /etc/apt/sources.list"
	mkdir -p "$dir/lists/partial" "$dir/archives/partial"
	for release in "$@"; do
		echo "deb [arch=amd64 signed-by=$keyring] $main $release main"
		[[ -z $security ]] || echo "deb [arch=amd64 signed-by=$keyring] $security $release-security main"
	done >"$dir/sources.list"
	: >"$dir/status"
	ARCHIVE=(
		-qq
		-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
		-o "Dir::State=$dir" -o "Dir::State::Lists=$dir/lists" -o "Dir::State::status=$dir/status"
		-o "Dir::Cache=$dir" -o "Dir::Cache::Archives=$dir/archives"
		-o APT::Architecture=amd64 -o APT::Architectures::=amd64
		-o APT::Update::Error-Mode=any -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User=root
	)
	apt-get "${ARCHIVE[@]}" update >&2 || die "cannot read the package lists of Debian $*: is the mirror in apt's sources reachable?"
}

# archive_newest REGEX: the name of the package that matches and has the highest version in its name.
archive_newest() { apt-cache "${ARCHIVE[@]}" pkgnames | grep -E "^$1\$" | sort -V | tail -n 1 || true; }

# archive_version PACKAGE: the newest version the archive has of it; nothing if it has none.
archive_version() {
	apt-cache "${ARCHIVE[@]}" show --no-all-versions "$1" 2>/dev/null | sed -n 's/^Version: //p' | sed -n 1p
}

# archive_unpack PACKAGE DIR: downloads the package and unpacks its files into DIR.
archive_unpack() {
	local download
	download=$(mktemp -d "$2/../deb.XXXXXX")
	(cd "$download" && apt-get "${ARCHIVE[@]}" download "$1") >&2 || die "cannot download the Debian package $1"
	dpkg-deb -x "$download"/*.deb "$2"
	rm -rf "$download"
}
