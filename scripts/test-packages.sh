#!/bin/bash
# Tests what `make deb` and `make dist` build: two builds are equal, lintian has no errors, and in a clean Debian the packages
# install, `boxlite check` is content, a container runs, and nothing stays behind. Needs root; `make test-packages` runs it.
set -euo pipefail

usage() {
	echo "usage: scripts/test-packages.sh [SUITE ...]    Debian's releases to install on, default: bookworm trixie"
}

die() {
	echo "scripts/test-packages.sh: $*" >&2
	exit 1
}

title() { printf '== %s\n' "$*"; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/boxlite/images

# copy DIR copies this tree without what is built. It has a commit of its own, whatever happens to the tree meanwhile.
copy() {
	git clone -q --shared . "$1"
	tar --exclude=./bin --exclude=./.git -c . | tar -x -C "$1"
}

# build DIR builds all packages there.
build() {
	make -C "$1" -s deb dist >"$1.log" 2>&1 || {
		tail -n 20 "$1.log" >&2
		die 'make deb dist'
	}
}

# in_root DIR COMMAND... runs a command on a machine whose file system DIR is.
in_root() { scripts/in-root.sh "$@" </dev/null; }

# try_on SUITE installs the packages and runs a container.
try_on() {
	local root=$work/$1 out
	title "on $1"
	mkdir -p "$cache/debs-$1" "$cache/archives-$1/partial"
	debootstrap --variant=minbase --cache-dir="$cache/debs-$1" "$1" "$root" >"$work/log" 2>&1 || {
		tail -n 20 "$work/log" >&2
		die "debootstrap $1"
	}
	mkdir -p "$root/packages" "$root/bundle/rootfs/bin"
	cp "$work"/one/bin/deb/*.deb "$root/packages"
	cp -n "$cache/archives-$1"/*.deb "$root/var/cache/apt/archives" 2>/dev/null || true
	in_root "$root" sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends -o APT::Keep-Downloaded-Packages=true /packages/*.deb' \
		>"$work/log" 2>&1 || {
		tail -n 20 "$work/log" >&2
		die "$1: apt-get install"
	}
	cp -n "$root"/var/cache/apt/archives/*.deb "$cache/archives-$1" 2>/dev/null || true

	in_root "$root" boxlite check || die "$1: boxlite check"
	cp "$(command -v busybox)" "$root/bundle/rootfs/bin/busybox"
	ln -s busybox "$root/bundle/rootfs/bin/sh"
	in_root "$root" boxlite spec --bundle /bundle
	# shellcheck disable=SC2016 # it is the container's shell's
	sed -i -e 's/"terminal": true/"terminal": false/' -e 's/^\(\t*\)"sh"$/\1"sh", "-c", "echo it runs on $(busybox uname -r)"/' "$root/bundle/config.json"
	out=$(in_root "$root" boxlite run --bundle /bundle try) || die "$1: boxlite run"
	[[ $out == "it runs on "*-boxlite-lean ]] || die "$1: the container says \"$out\""
	echo "$out"
	in_root "$root" sh -c 'test -e /usr/share/man/man8/boxlite-run.8.gz && test -e /usr/share/bash-completion/completions/boxlite && test -e /usr/share/zsh/vendor-completions/_boxlite && test -e /usr/lib/systemd/system/boxlite-standby.service' ||
		die "$1: pages, completions or the unit are not there"
	in_root "$root" apt-get purge -y -qq boxlite boxlite-kernel >"$work/log" 2>&1 || die "$1: apt-get purge"
	out=$(find "$root"/{etc,usr,var/lib} -name '*boxlite*' ! -path '*/var/lib/dpkg/*')
	[ -z "$out" ] || die "$1: left behind: $out"
	rm -rf --one-file-system "$root"
}

case ${1:-} in
-h | --help)
	usage
	exit 0
	;;
esac
[ "$(id -u)" = 0 ] || die 'debootstrap needs root'
[ $# -gt 0 ] || set -- bookworm trixie
mkdir -p "$cache"
work=$(mktemp -d /var/tmp/boxlite-packages.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM HUP

title 'two builds'
copy "$work/one"
copy "$work/two"
build "$work/one"
build "$work/two"
for file in "$work"/one/bin/{deb,dist}/*; do
	cmp "$file" "${file/$work\/one/$work/two}"
done
ls -l "$work"/one/bin/{deb,dist}

title 'lintian'
lintian --allow-root --fail-on error --tag-display-limit 0 "$work"/one/bin/deb/*.deb

title 'the tarball'
mkdir "$work/local"
tar -C "$work/local" --strip-components=1 -xf "$work"/one/bin/dist/*.tar.gz
for path in bin/boxlite lib/boxlite/{initramfs.cpio,vmlinux-lean,vmlinux-net} lib/systemd/system/boxlite-standby.service \
	share/man/man8/boxlite.8 share/fish/vendor_completions.d/boxlite.fish share/doc/boxlite/README; do
	[ -s "$work/local/$path" ] || die "no $path in the tarball"
done
"$work/local/bin/boxlite" check >"$work/log" || die "boxlite check of the tarball's: $(cat "$work/log")"
grep -q "initramfs in $work/local/lib/boxlite" "$work/log" || die "the tarball's boxlite has parts of elsewhere: $(cat "$work/log")"

for suite in "$@"; do
	try_on "$suite"
done
title 'the packages are good'
