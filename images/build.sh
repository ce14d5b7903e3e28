#!/bin/bash
# Builds images for trying what needs a whole Linux in a container, from Debian's packages, and keeps them in a cache outside
# the tree. README.md says what they are.
set -euo pipefail

usage() {
	cat <<-END
	usage: images/build.sh [--suite SUITE] [--import] dind|host|machine|programs|tools ...

	  --suite   Debian release to build from, default $suite
	  --import  have the docker that DOCKER_HOST names import each as boxlite/NAME, boxlite/NAME:SUITE of another release
	END
}

die() {
	echo "images/build.sh: $*" >&2
	exit 1
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/boxlite/images

# Raise this when a change below changes what comes out: it is part of the key of every cached image.
recipe=1

suite=bookworm import='' wanted=()
while [ $# -gt 0 ]; do
	case $1 in
	--suite)
		[ $# -ge 2 ] || die "$1 needs a value"
		suite=$2
		shift 2
		;;
	--import)
		import=1
		shift
		;;
	-h | --help)
		usage
		exit 0
		;;
	*)
		[ -e "$here/$1/packages" ] || {
			usage >&2
			die "unknown argument \"$1\""
		}
		wanted+=("$1")
		shift
		;;
	esac
done
[ ${#wanted[@]} -gt 0 ] || {
	usage >&2
	die 'name at least one image'
}

# listed NAME FILE lists the packages of a file, with commas. Those that only one release has are in FILE-RELEASE.
listed() {
	cat "$here/$1/$2" "$here/$1/$2-$suite" 2>/dev/null | sed 's/#.*//' | xargs | tr ' ' ,
}

content_key() {
	{
		echo "recipe $recipe, suite $suite"
		listed "$1" packages
		[ ! -e "$here/$1/apt" ] || listed "$1" apt
		cat "$here/$1/config"
		[ ! -d "$here/$1/files" ] || tar -C "$here/$1/files" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -c .
	} | sha256sum | cut -c1-20
}

# checked COMMAND... runs it silently, unless it fails.
checked() {
	"$@" >"$tmp/log" 2>&1 </dev/null || {
		tail -n 20 "$tmp/log" >&2
		die "$*"
	}
}

# install ROOT PACKAGE... has the image's apt install packages. Nothing starts.
install() {
	local root=$1 archives=$cache/archives-$suite
	shift
	mkdir -p "$archives/partial"
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	checked cp -n -r "$archives/." "$root/var/cache/apt/archives"
	checked "$here/../scripts/in-root.sh" "$root" apt-get update -qq
	checked "$here/../scripts/in-root.sh" "$root" apt-get install -y -qq --no-install-recommends \
		-o Dpkg::Options::=--force-unsafe-io -o APT::Keep-Downloaded-Packages=true "$@"
	checked cp -n -r "$root/var/cache/apt/archives/." "$archives"
	rm "$root/usr/sbin/policy-rc.d"
	rm -rf "$root"/var/lib/{mysql,postgresql}/* # servers have made databases
}

# build NAME leaves the image in the cache under its key.
build() {
	local name=$1 began=$SECONDS root packages
	command -v debootstrap >/dev/null || die 'please install: debootstrap'
	[ "$(id -u)" = 0 ] || die 'debootstrap needs root'
	# What a killed build left: the lock is ours, so nobody is at work in there.
	rm -rf "$cache"/build.*
	tmp=$(mktemp -d "$cache/build.XXXXXX")
	root=$tmp/rootfs
	mkdir -p "$cache/debs-$suite"
	checked debootstrap --variant=minbase --cache-dir="$cache/debs-$suite" --include="$(listed "$name" packages)" "$suite" "$root"
	IFS=, read -ra packages <<<"$(listed "$name" apt)"
	[ ${#packages[@]} = 0 ] || install "$root" "${packages[@]}"
	rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,info,locale,man}/* "$root"/var/log/* "$root"/etc/machine-id
	rm -f "$root"/etc/resolv.conf "$root"/etc/hostname
	: >"$root/etc/machine-id"
	[ ! -d "$here/$name/files" ] || cp -a --no-preserve=ownership "$here/$name/files/." "$root"
	tar -C "$root" -cf "$tmp/rootfs.tar" .
	rm -rf "$root" "$tmp/log"
	chmod 755 "$tmp"
	mv -T "$tmp" "$cache/$key"
	echo "$name: built in $((SECONDS - began)) s"
}

# import_image NAME makes it an image of Docker's. The lines of config are Dockerfile instructions.
import_image() {
	local changes=() line tag=boxlite/$1
	while IFS= read -r line; do
		changes+=(--change "$line")
	done <"$here/$1/config"
	[ "$suite" = bookworm ] || tag=$tag:$suite
	docker import "${changes[@]}" "$cache/$key/rootfs.tar" "$tag" >/dev/null
	echo "$1: imported as $tag"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
for name in "${wanted[@]}"; do
	key=$name-$suite-$(content_key "$name")
	if [ ! -e "$cache/$key/rootfs.tar" ]; then
		flock -n 9 || { echo "waiting for another build" && flock 9; }
		[ -e "$cache/$key/rootfs.tar" ] || build "$name"
		flock -u 9
	fi
	[ -z "$import" ] || import_image "$name"
	echo "$name: $suite, $(($(stat -c %s "$cache/$key/rootfs.tar") >> 20)) MiB, $cache/$key/rootfs.tar"
done
