#!/bin/bash
# Installs from the distribution (Debian, Ubuntu) what is missing for building boxlite, for running containers and for the
# tests. With nothing missing it says nothing, changes nothing and takes no time.
set -euo pipefail

usage() {
	cat <<-END
	usage: scripts/install-deps.sh [build] [prebuilt] [run] [demo] [test] [suites] [engines] [packages]

	  build  compilers and kernel source for boxlite and its guest kernels
	  prebuilt  what takes Debian's kernel out of its package, which stands in for the guest kernels
	  run    what starts containers: QEMU, virtiofsd, iproute2, iptables, e2fsprogs
	  demo   Docker, busybox, and debootstrap for an image with Docker inside
	  test   what the tests and benchmarks drive besides: Podman, crun, shellcheck ...
	  suites what other projects' tests are written in: make conformance-runc
	  engines  what runc is built with: make test-engines
	  packages  what make deb and make test-packages call: debhelper, lintian, debootstrap
	  Without arguments: all but prebuilt, suites, engines and packages.
	END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
missing=()

# need PACKAGE FILE_OR_PROGRAM... asks for the package unless one of the others is there.
need() {
	local package=$1 thing
	shift
	for thing in "$@"; do
		case $thing in
		*/*) ! compgen -G "$thing" >/dev/null || return 0 ;;
		*) ! command -v "$thing" >/dev/null || return 0 ;;
		esac
	done
	missing+=("$package")
}

need_build() {
	need make make
	need gcc gcc
	need libc6-dev /usr/include/stdio.h
	need flex flex
	need bison bison
	need bc bc
	need patch patch
	need xz-utils xz
	need libelf-dev /usr/include/libelf.h
	need linux-source '/usr/src/linux-source-*.tar.xz'
}

need_prebuilt() {
	need make make
	need lz4 lz4
	need zstd zstd
	need xz-utils xz
}

need_run() {
	need qemu-system-x86 qemu-system-x86_64 /usr/bin/qemu-system-x86_64
	# The C program comes with QEMU 7.2's packages, the Rust one in a package of its own.
	need virtiofsd virtiofsd /usr/libexec/virtiofsd /usr/lib/virtiofsd /usr/lib/qemu/virtiofsd
	need iproute2 tc
	need iptables iptables
	need procps ps
	need e2fsprogs mke2fs
}

need_demo() {
	need docker.io dockerd
	need docker-cli /usr/bin/docker
	need containerd containerd
	need runc runc
	need busybox-static /usr/bin/busybox /bin/busybox
	need debootstrap debootstrap
}

need_test() {
	need_prebuilt
	# Debian 12's Docker builds without the one, and its netavark has no use for the other.
	grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release || {
		need docker-buildx '/usr/lib*/docker/cli-plugins/docker-buildx'
		need nftables nft
	}
	need crun crun
	need runsc runsc
	need podman podman
	need netavark /usr/lib/podman/netavark
	need aardvark-dns /usr/lib/podman/aardvark-dns
	need slirp4netns slirp4netns
	need passt pasta
	need uidmap newuidmap
	need catatonit catatonit
	need containernetworking-plugins /usr/lib/cni/bridge
	need shellcheck shellcheck
	need mandoc mandoc
	need attr getfattr
	need acl setfacl
	need ca-certificates /etc/ssl/certs/ca-certificates.crt
}

need_suites() {
	need bats bats
	need gawk gawk
	need jq jq
}

need_engines() {
	need gcc gcc
	need libc6-dev /usr/include/stdio.h
	need pkg-config pkg-config
	need libseccomp-dev /usr/include/seccomp.h
}

need_packages() {
	need debhelper dh
	need lintian lintian
	need debootstrap debootstrap
	need busybox-static /usr/bin/busybox /bin/busybox
}

# check_go says what to do about Go, which no Debian release has new enough.
check_go() {
	local want have
	want=$(awk '$1 == "go" { print $2 }' "$here/../go.mod")
	if have=$(cd "$here/.." && go env GOVERSION 2>/dev/null) &&
		printf '%s\n' "$want" "${have#go}" | sort -V -C; then
		return
	fi
	cat >&2 <<-END
	boxlite is built with Go $want or later, and there is ${have:-no go of that version} on PATH.
	  Download go$want (or later) for linux-amd64 from https://go.dev/dl/ and unpack it:
	      tar -C /usr/local -xzf go$want.linux-amd64.tar.gz
	  make finds it in /usr/local/go/bin by itself.
	END
	exit 1
}

install_missing() {
	echo "installing ${missing[*]}"
	if ! command -v apt-get >/dev/null; then
		echo "install-deps.sh: no apt-get here: please install what is named above by hand" >&2
		exit 1
	fi
	if [ "$(id -u)" != 0 ]; then
		echo "install-deps.sh: that takes root: run it with sudo" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	# Before Debian 13 these two are parts of other packages.
	local packages=() package
	for package in "${missing[@]}"; do
		case $package in
		virtiofsd) has_package "$package" || package=qemu-system-common ;;
		docker-cli) has_package "$package" || package=docker.io ;;
		esac
		packages+=("$package")
	done
	apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${packages[@]}"
}

has_package() { apt-cache show "$1" >/dev/null 2>&1; }

PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
[ $# -gt 0 ] || set -- build run demo test
for group in "$@"; do
	case $group in
	build | prebuilt | run | demo | test | suites | engines | packages) "need_$group" ;;
	-h | --help)
		usage
		exit 0
		;;
	*)
		usage >&2
		exit 2
		;;
	esac
done
[ ${#missing[@]} = 0 ] || install_missing
[[ " $* " != *" build "* && " $* " != *" prebuilt "* ]] || check_go
