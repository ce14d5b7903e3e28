#!/bin/bash
# Runs a command on a machine whose file system is a directory: the root of mount and pid namespaces of its own, after a
# real pivot. /proc, /sys and /dev are there; /run and /tmp are empty. Mounts and processes end with the command.
set -euo pipefail

usage() {
	cat <<-END
	usage: scripts/in-root.sh [--writes DIR] [--bind PATH] ... ROOT COMMAND [ARGUMENT ...]

	  --writes  leave ROOT as it is: what is written goes to DIR, by overlayfs
	  --bind    show this machine's PATH, a directory, in ROOT at the same place
	END
}

die() {
	echo "scripts/in-root.sh: $*" >&2
	exit 1
}

# inside runs in the namespaces, as PID 1.
inside() {
	local root=$1 path
	shift
	mount --make-rprivate /
	if [ -n "$writes" ]; then
		mkdir -p "$writes"/{upper,work,root}
		mount -t overlay overlay -o "lowerdir=$root,upperdir=$writes/upper,workdir=$writes/work" "$writes/root"
		root=$writes/root
	else
		mount --bind "$root" "$root"
	fi
	mount -t proc proc "$root/proc"
	mount --rbind /sys "$root/sys"
	mount --rbind /dev "$root/dev"
	mount -t tmpfs tmpfs "$root/run"
	mount -t tmpfs tmpfs "$root/tmp"
	for path in "${binds[@]}"; do
		mkdir -p "$root$path"
		mount --rbind "$path" "$root$path"
	done
	mkdir "$root/tmp/old"
	cd "$root"
	pivot_root . tmp/old
	umount -l /tmp/old
	rmdir /tmp/old
	cd "$from" 2>/dev/null || cd /
	export PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root
	exec "$@"
}

writes='' binds=() from=$PWD
given=("$@")
while [ $# -gt 0 ]; do
	case $1 in
	--writes | --bind)
		[ $# -ge 2 ] || die "$1 needs a value"
		case $1 in
		--writes) writes=$2 ;;
		*) binds+=("$2") ;;
		esac
		shift 2
		;;
	-h | --help)
		usage
		exit 0
		;;
	*) break ;;
	esac
done
[ $# -ge 2 ] || {
	usage >&2
	exit 2
}
if [ -z "${IN_ROOT_STAGE:-}" ]; then
	IN_ROOT_STAGE=inside exec unshare --mount --pid --fork --kill-child -- "${BASH_SOURCE[0]}" "${given[@]}"
fi
unset IN_ROOT_STAGE
inside "$@"
