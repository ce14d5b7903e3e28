#!/bin/bash
# Makes packages of what `make all` has built. Two builds of one commit give equal files.
set -euo pipefail

usage() {
	cat <<-END
	usage: scripts/packages.sh deb|dist

	  deb   boxlite and boxlite-kernel for Debian and Ubuntu, into bin/deb
	  dist  a tarball for other distributions, into bin/dist
	END
}

die() {
	echo "scripts/packages.sh: $*" >&2
	exit 1
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
repo=$PWD
umask 022
export LC_ALL=C TZ=UTC0

git rev-parse HEAD >/dev/null 2>&1 || die 'versions and dates are those of git: build in a clone'
release=${RELEASE:?is set by make}
commit_date=$(git log -1 --format=%ct)
version=$release~git$(date -d "@$commit_date" +%Y%m%d%H%M).$(git rev-parse --short=10 HEAD)
[ "$(git describe --tags --exact-match 2>/dev/null)" != "v$release" ] || version=$release
[ -z "$(git status --porcelain)" ] || version+=+dirty

# install_into DIR PREFIX TARGET... has make install.
install_into() {
	make --no-print-directory -s "${@:3}" DESTDIR="$1" PREFIX="$2"
}

# changelog PACKAGE VERSION DATE TEXT prints what debhelper takes the version from.
changelog() {
	cat <<-END
	$1 ($2) unstable; urgency=medium

	  * $4

	 -- $(sed -n 's/^Maintainer: //p' "packaging/$1/debian/control")  $(date -R -d "@$3")
	END
}

# pack PACKAGE VERSION DATE TEXT packs bin/deb/PACKAGE, in which usr is what is installed. TEXT is the change.
pack() {
	local dir=bin/deb/$1
	mkdir -p "$dir/debian"
	cp -r "packaging/$1/debian/." "$dir/debian"
	changelog "$1" "$2" "$3" "$4" >"$dir/debian/changelog"
	# One thread: with more, xz cuts the data into blocks.
	(cd "$dir" && SOURCE_DATE_EPOCH=$3 DPKG_DEB_THREADS_MAX=1 dh binary) >"$dir.log" 2>&1 || {
		tail -n 20 "$dir.log" >&2
		die "$1: dh"
	}
	rm -rf "$dir" "$dir.log"
}

make_deb() {
	local kernel_version kernel_date tree
	command -v dh >/dev/null || die 'please install: debhelper'
	rm -rf bin/deb
	# The kernels have a version and a date of their own: they change without boxlite, and boxlite without them.
	kernel_date=$(git log -1 --format=%ct -- kernels/build.sh kernels/patches 'kernels/*.config')
	kernel_version=$(strings bin/vmlinux-lean | sed -n 's/^Linux version \([0-9.]*\).*/\1/p' | head -n 1)
	[ -n "$kernel_version" ] || die 'bin/vmlinux-lean does not say its version'
	kernel_version+=+git$(date -d "@$kernel_date" +%Y%m%d%H%M)-1

	tree=bin/deb/boxlite-kernel
	install_into "$repo/$tree" /usr install-kernels
	install -D -m 0644 -t "$tree/usr/share/doc/boxlite-kernel/kernels" kernels/README.md kernels/{lean,net}*.config kernels/build.sh
	install -D -m 0644 -t "$tree/usr/share/doc/boxlite-kernel/kernels/patches" kernels/patches/*.patch
	pack boxlite-kernel "$kernel_version" "$kernel_date" 'Built from the kernel source of Debian.'

	tree=bin/deb/boxlite
	install_into "$repo/$tree" /usr install-program
	mkdir "$tree/debian"
	mv "$tree/usr/lib/systemd/system/boxlite-standby.service" "$tree/debian/boxlite.boxlite-standby.service"
	rm -r "$tree/usr/lib/systemd"
	mv "$tree/usr/share/zsh/site-functions" "$tree/usr/share/zsh/vendor-completions" # where Debian's zsh looks
	# debhelper has its own ways for these two.
	mv "$tree/usr/share/doc/boxlite/CHANGELOG.md" "$tree"
	rm "$tree/usr/share/doc/boxlite/LICENSE"
	KERNEL_VERSION=$kernel_version pack boxlite "$version-1" "$commit_date" "Built from commit $(git rev-parse HEAD)."
	ls -l bin/deb/*.deb
}

make_dist() {
	local name=boxlite-$version-linux-amd64
	rm -rf bin/dist
	install_into "$repo/bin/dist/root" /usr/local install
	mv bin/dist/root/usr/local "bin/dist/$name"
	cp packaging/README.dist "bin/dist/$name/share/doc/boxlite/README"
	tar -C bin/dist --sort=name --mtime="@$commit_date" --owner=0 --group=0 --numeric-owner --format=gnu -c "$name" | gzip -n >"bin/dist/$name.tar.gz"
	rm -rf bin/dist/root "bin/dist/$name"
	ls -l bin/dist/*.tar.gz
}

case ${1:-} in
deb) make_deb ;;
dist) make_dist ;;
-h | --help) usage ;;
*)
	usage >&2
	exit 2
	;;
esac
