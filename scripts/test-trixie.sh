#!/bin/bash
# Runs tests in a Debian 13 (trixie) userland on this machine, with that release's Docker, containerd, Podman, QEMU and
# virtiofsd. The host's kernel is this machine's. Needs root; `make test-trixie` and `make trixie-check` run it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin
suite=trixie
caches=${XDG_CACHE_HOME:-$HOME/.cache}
cache=$caches/boxlite/userlands
archives=$caches/boxlite/images/archives-$suite # those of scripts/test-packages.sh

# Raise this when a change below changes what comes out: it is part of the key of the cached userland.
recipe=1

usage() {
	cat <<-END
	usage: scripts/test-trixie.sh [--kernels] ARGUMENT ...

	  --kernels  build the guest kernels in the userland, from that release's source, into bin/$suite, and test with them
	  ARGUMENT   of go test, such as: -v -run TestExec ./e2e

	What is tested is in bin: make all. The userland is made by debootstrap and
	scripts/install-deps.sh. It is kept in $cache
	until install-deps.sh changes. Remove it to have the packages of today.
	END
}

die() {
	echo "scripts/test-trixie.sh: $*" >&2
	exit 1
}

# checked COMMAND... runs it silently, unless it fails.
checked() {
	"$@" >"$tmp/log" 2>&1 </dev/null || {
		tail -n 20 "$tmp/log" >&2
		die "$*"
	}
}

# build leaves the userland in the cache under its key.
build() {
	local began=$SECONDS made
	# What a killed build left: the lock is ours, so nobody is at work in there.
	rm -rf --one-file-system "$cache"/build.*
	tmp=$(mktemp -d "$cache/build.XXXXXX")
	made=$tmp/root
	mkdir -p "$caches/boxlite/images/debs-$suite" "$archives/partial"
	echo "making a userland of $suite in $cache"
	checked debootstrap --variant=minbase --cache-dir="$caches/boxlite/images/debs-$suite" "$suite" "$made"
	# Nothing starts: there is no init.
	printf '#!/bin/sh\nexit 101\n' >"$made/usr/sbin/policy-rc.d"
	chmod 755 "$made/usr/sbin/policy-rc.d"
	checked cp -n -r "$archives/." "$made/var/cache/apt/archives"
	checked scripts/in-root.sh --bind "$PWD" "$made" scripts/install-deps.sh run demo test
	checked cp -n -r "$made/var/cache/apt/archives/." "$archives"
	rm -rf "$made"/var/cache/apt/* "$made"/var/lib/apt/lists/*
	mv -T "$made" "$root"
	rm -rf "$tmp"
	echo "made in $((SECONDS - began)) s"
}

kernels=''
if [ "${1:-}" = --kernels ]; then
	kernels=1
	shift
fi
case ${1:-} in
'' | -h | --help)
	usage
	exit 0
	;;
esac
[ "$(id -u)" = 0 ] || die 'root is needed'
command -v debootstrap >/dev/null || die 'please install: debootstrap'

mkdir -p "$cache"
root=$cache/$suite-$({
	echo "recipe $recipe, suite $suite"
	cat scripts/install-deps.sh
} | sha256sum | cut -c1-20)
exec 9>"$cache/lock"
if [ ! -e "$root" ]; then
	flock -n 9 || { echo "waiting for another build" && flock 9; }
	[ -e "$root" ] || build
	flock -u 9
fi
exec 9>&-

writes=$(mktemp -d /var/tmp/boxlite-trixie.XXXXXX)
trap 'rm -rf --one-file-system "$writes"' EXIT
trap 'exit 130' INT TERM HUP
# Images and bundles are below /var/tmp, on this machine's disk.
in_userland() {
	scripts/in-root.sh --writes "$writes" --bind /var/tmp --bind "$PWD" --bind "$caches" --bind "$(go env GOROOT)" --bind "$(go env GOMODCACHE)" "$root" "$@"
}
# shellcheck disable=SC2016 # it is the inner shell's
in_userland dpkg-query -W -f '${Package} ${Version}\n' containerd crun docker.io passt podman qemu-system-x86 runc virtiofsd
bin=$PWD/bin
if [ -n "$kernels" ]; then
	# build.sh installs the compilers and the source, for this run alone.
	in_userland sh -c "apt-get update -qq && exec kernels/build.sh --out bin/$suite lean net"
	cp bin/boxlite bin/guestinit bin/initramfs.cpio "bin/$suite"
	bin=$bin/$suite
fi
in_userland env GOCACHE="$(go env GOCACHE)" GOMODCACHE="$(go env GOMODCACHE)" BOXLITE="$bin/boxlite" go test "$@"
