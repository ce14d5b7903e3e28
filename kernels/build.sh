#!/bin/bash
# Builds the guest kernels from the distribution's kernel source and keeps them in a cache outside the tree. README.md
# ("The cache") says what is in there and what makes a cached kernel stale.
set -euo pipefail

usage() {
	cat <<-END
	usage: kernels/build.sh [--cached] [--source TARBALL_OR_DIR] [--out DIR] lean|net|full ...

	  --cached  build and install nothing: fail if a kernel is not in the cache
	  --source  kernel source instead of the newest /usr/src/linux-source-*.tar.xz (installed if there is none)
	  --out     also copy each kernel to DIR/vmlinux-NAME when it differs from what is there
	END
}

die() {
	echo "kernels/build.sh: $*" >&2
	exit 1
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/boxlite/kernels

# Raise this when a change below changes what comes out: it is part of the key of every cached kernel.
recipe=1

declare -A fragments=(
	[lean]="lean"
	[net]="lean net"
	[full]="lean net full"
)
# Each set of options contains the one before, so in this order the fewest objects are compiled twice.
order=(lean net full)

source_path='' out='' key='' cached=''
declare -A wanted=()
while [ $# -gt 0 ]; do
	case $1 in
	--cached)
		cached=1
		shift
		;;
	--source | --out)
		[ $# -ge 2 ] || die "$1 needs a value"
		if [ "$1" = --source ]; then source_path=$2; else out=$2; fi
		shift 2
		;;
	-h | --help)
		usage
		exit 0
		;;
	lean | net | full)
		wanted[$1]=1
		shift
		;;
	*)
		usage >&2
		die "unknown argument \"$1\""
		;;
	esac
done
[ ${#wanted[@]} -gt 0 ] || {
	usage >&2
	die "name at least one kernel"
}

# apt_install PACKAGE... installs what a Debian or Ubuntu machine lacks; elsewhere the user has to.
apt_install() {
	[ -z "$cached" ] || die "missing: $*"
	if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
		die "please install: $*"
	fi
	echo "installing $*"
	apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
}

install_tools() {
	local missing=() tool
	for tool in make gcc flex bison bc patch xz; do
		command -v "$tool" >/dev/null || missing+=("${tool/#xz/xz-utils}")
	done
	[ -e /usr/include/libelf.h ] || missing+=(libelf-dev)
	[ -z "${wanted[full]:-}" ] || command -v pahole >/dev/null || missing+=(dwarves)
	[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}" libc6-dev
}

find_source() {
	local found=
	newest() { find /usr/src -maxdepth 1 -name 'linux-source-*.tar.xz' | sort -V | tail -n 1; }
	found=$(newest)
	if [ -z "$found" ]; then
		apt_install linux-source >&2
		found=$(newest)
	fi
	[ -n "$found" ] || die "no /usr/src/linux-source-*.tar.xz; name a source with --source"
	echo "$found"
}

# remembered NAME COMMAND... prints what the command says of the source's tarball. It is kept under the tarball's path, size
# and mtime, because reading 140 MB takes longer than everything else a build with nothing to do does.
remembered() {
	local stat_line memo
	stat_line=$(stat -L -c '%n %s %Y' "$(realpath "$source_path")")
	memo=$cache/source-hashes/$(sha256sum <<<"$stat_line" | cut -c1-16)$1
	shift
	if [ ! -s "$memo" ]; then
		mkdir -p "${memo%/*}"
		"$@" >"$memo.$$" || {
			rm -f "$memo.$$"
			die "cannot read $source_path"
		}
		mv "$memo.$$" "$memo"
	fi
	cat "$memo"
}

# source_hash prints what identifies the source.
source_hash() {
	if [ -d "$source_path" ]; then
		find "$source_path" -name .git -prune -o -type f -printf '%P %s %T@\n' | LC_ALL=C sort | sha256sum | cut -c1-64
	else
		remembered '' tarball_hash
	fi
}

tarball_hash() {
	sha256sum "$source_path" | cut -c1-64
}

# source_version prints the source's version, such as 6.12.
source_version() {
	if [ -d "$source_path" ]; then
		version_of_makefile <"$source_path/Makefile"
	else
		remembered -version tarball_version
	fi
}

tarball_version() {
	tar -xOf "$source_path" --wildcards --no-wildcards-match-slash --occurrence=1 '*/Makefile' | version_of_makefile
}

version_of_makefile() {
	awk '$1 == "VERSION" { v = $3 } $1 == "PATCHLEVEL" { p = $3 } END { if (v == "") exit 1; print v "." p }'
}

# merged_fragments NAME prints the fragments in order. NAME-VERSION.config, where there is one, holds the symbols that only
# that version of the source has.
merged_fragments() {
	local base
	for base in ${fragments[$1]}; do
		cat "$here/$base.config"
		[ ! -e "$here/$base-$version.config" ] || cat "$here/$base-$version.config"
	done
}

content_key() {
	{
		echo "recipe $recipe, source $src_hash"
		gcc --version | sed -n 1p
		ld --version | sed -n 1p
		[ "$1" != full ] || pahole --version
		merged_fragments "$1"
	} | sha256sum | cut -c1-20
}

# unpack puts the source into $src. Left out is what no x86 virtual machine is built from: it is half of the tree. The
# Kconfig files stay, kconfig reads all of them. A source that is a directory is built as it is, without our patches.
unpack() {
	[ ! -d "$src" ] || return 0
	echo "unpacking $source_path"
	local tmp
	tmp=$(mktemp -d "$cache/unpack.XXXXXX")
	tar -xf "$source_path" -C "$tmp" --strip-components=1 \
		--exclude='*/arch/[a-w]*/*.[chS]' --exclude='*/arch/[a-w]*/boot/dts' --exclude='*/drivers/gpu/drm/*.[ch]' --exclude='*/tools/testing' \
		--exclude='*/Documentation/*/*' --exclude='*/sound/*.[ch]'
	local patch
	for patch in "$here"/patches/*.patch; do
		patch -d "$tmp" -p1 -s --no-backup-if-mismatch <"$patch" || die "${patch##*/} does not apply to $source_path"
	done
	mv "$tmp" "$src"
}

# configure NAME writes $obj/.config and ends the build if a line of the fragments is not in it: kconfig drops without a
# word what is misspelt, was renamed, or lacks a dependency.
configure() {
	merged_fragments "$1" >"$obj/fragments"
	make -s -C "$src" O="$obj" KCONFIG_ALLCONFIG="$obj/fragments" allnoconfig >"$obj/config.log" 2>&1 ||
		{
			tail -n 20 "$obj/config.log" >&2
			die "$1: make allnoconfig"
		}
	make -s -C "$src" O="$obj" olddefconfig
	awk '
		function setting(line) {
			if (match(line, /^# CONFIG_[A-Za-z0-9_]+ is not set/)) { sym = $2; val = "n"; return 1 }
			if (match(line, /^CONFIG_[A-Za-z0-9_]+=/)) {
				sym = substr(line, 1, RLENGTH - 1); val = substr(line, RLENGTH + 1); return 1
			}
			return 0
		}
		!setting($0) { next }
		NR == FNR { want[sym] = val; next }
		{ have[sym] = val }
		END {
			for (sym in want) {
				got = (sym in have) ? have[sym] : "n"
				if (got != want[sym]) { printf "%s: wanted %s, got %s\n", sym, want[sym], got; lost = 1 }
			}
			exit lost
		}' "$obj/fragments" "$obj/.config" | sort >"$obj/lost" ||
		{
			cat "$obj/lost" >&2
			die "$1: the source's kconfig did not take these symbols of its fragments (${fragments[$1]})"
		}
}

# progress NAME turns make's output into one line per 250 steps.
progress() {
	local line steps=0 began=$SECONDS
	while IFS= read -r line; do
		[[ $line == "  "[A-Z]* ]] || continue
		steps=$((steps + 1))
		[ $((steps % 250)) != 0 ] || echo "$1: $steps steps, $((SECONDS - began)) s, at ${line##* }"
	done
}

# compile NAME makes $obj/vmlinux; make's whole output is in $obj/NAME.log. Fixed names and the source's own date keep two
# builds of one key alike.
compile() {
	make -C "$src" O="$obj" -j"$(nproc)" vmlinux \
		KBUILD_BUILD_USER=boxlite KBUILD_BUILD_HOST=boxlite KBUILD_BUILD_VERSION=1 \
		KBUILD_BUILD_TIMESTAMP="$(date -u -r "$src/Makefile")" 2>&1 | tee "$obj/$1.log" | progress "$1" ||
		{
			grep -E -A 5 'rror|\*\*\*' "$obj/$1.log" | head -n 30 >&2 || true
			die "$1: make; all of it is in $obj/$1.log"
		}
}

# build NAME leaves the kernel in the cache under its key.
build() {
	local began=$SECONDS tmp
	# What a killed build left: the lock is ours, so nobody is at work in there.
	rm -rf "$cache"/unpack.* "$cache"/build.*
	unpack
	mkdir -p "$obj"
	configure "$1"
	compile "$1"
	tmp=$(mktemp -d "$cache/build.XXXXXX")
	chmod 755 "$tmp"
	# The PVH note and the exception tables are in loaded sections, which strip leaves alone.
	strip --strip-all -o "$tmp/vmlinux" "$obj/vmlinux"
	cp "$obj/.config" "$tmp/config"
	cp "$obj/include/config/kernel.release" "$tmp/version"
	mv -T "$tmp" "$cache/$key"
	echo "$1: built in $((SECONDS - began)) s"
}

copy_out() {
	local target=$out/vmlinux-$1
	mkdir -p "$out"
	if ! cmp -s "$cache/$key/vmlinux" "$target"; then
		cp "$cache/$key/vmlinux" "$target.$$"
		mv "$target.$$" "$target"
	fi
}

install_tools
[ -n "$source_path" ] || source_path=$(find_source)
[ -e "$source_path" ] || die "no such source: $source_path"
mkdir -p "$cache"
version=$(source_version)
src_hash=$( (source_hash && cat "$here"/patches/*.patch) | sha256sum | cut -c1-16)
src=$cache/src-$src_hash
obj=$cache/obj-$src_hash
if [ -d "$source_path" ]; then
	# A directory that is being worked on changes its hash all the time; its objects are worth keeping.
	src=$(realpath "$source_path")
	obj=$cache/obj-$(sha256sum <<<"$src" | cut -c1-16)
fi

exec 9>"$cache/lock"
for name in "${order[@]}"; do
	[ -n "${wanted[$name]:-}" ] || continue
	key=$(content_key "$name")
	if [ ! -e "$cache/$key/vmlinux" ]; then
		[ -z "$cached" ] || die "$name is not in the cache"
		flock -n 9 || { echo "waiting for another build" && flock 9; }
		# The other build may have been of this very kernel, or the fragments have changed while we waited.
		key=$(content_key "$name")
		[ -e "$cache/$key/vmlinux" ] || build "$name"
		flock -u 9
	fi
	[ -z "$out" ] || copy_out "$name"
	echo "$name: $(cat "$cache/$key/version"), $(($(stat -c %s "$cache/$key/vmlinux") / 1024)) KiB, $cache/$key/vmlinux"
done
