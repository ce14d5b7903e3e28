# shellcheck shell=bash
# A Docker daemon of one's own with the runtime boxlite, for the scripts that source this file. Daemon and containers live
# in network, mount and pid namespaces of their own, the files in one directory and one cgroup: when the script ends, in
# whatever way, nothing of them is left.
#
# A script has two sides. The outside calls make_work, install_boxlite and run_inside. The inside is the same script, as
# PID 1 of the namespaces, with the arguments "inside WORK ARGUMENT...": it calls enter_host and start_docker.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH=/usr/bin:/bin:/usr/sbin:/sbin:$PATH # Debian's docker client, which fits Debian's daemon

say() { printf '%s\n' "$*"; }
die() {
	printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2
	exit 1
}

make_work() {
	work=$(mktemp -d /var/tmp/boxlite-demo.XXXXXX)
	inside_pid=
	trap clean_up EXIT
	trap 'exit 130' INT TERM HUP
}

# install_boxlite PARTS installs the program below $work/usr, with the kernels and the initramfs of the directory.
install_boxlite() {
	make -C "$repo" --no-print-directory -s install-program PREFIX="$work/usr" >/dev/null
	install -m 0644 -t "$work/usr/lib/boxlite" "$1"/vmlinux-{lean,net} "$1/initramfs.cpio"
}

# run_inside SCRIPT [ARGUMENT...]. In the background, so that a signal is acted upon at once. unshare complains when its
# child is killed, hence the stderr of its own.
run_inside() {
	local script=$1 status=0
	shift
	unshare --fork --pid --mount-proc --mount --net -- "$script" inside "$work" "$@" 3>&2 2>"$work/unshare.log" &
	inside_pid=$!
	wait "$inside_pid" || status=$?
	inside_pid=
	cat "$work/unshare.log" >&2
	[ "$status" = 0 ] || exit "$status"
}

clean_up() {
	trap '' INT TERM HUP
	if [ -n "$inside_pid" ]; then
		# The child of unshare is PID 1 in there: all others go with it, and unshare ends after them.
		local init
		init=$(ps -o pid= --ppid "$inside_pid") || true
		[ -z "$init" ] || kill -KILL "${init// /}" 2>/dev/null || true
		wait "$inside_pid" 2>/dev/null || true
		say
		say 'Interrupted: cleaning up.'
	fi
	find /sys/fs/cgroup -depth -type d -path "*/${work##*/}*" -exec rmdir {} + 2>/dev/null || true
	rm -rf "$work"
}

# enter_host gives the namespaces their own view: a loopback, a bridge for Docker, a /sys of this network, an empty /run.
enter_host() {
	work=$1
	exec 2>&3 3>&-
	mkdir -p "$work/cgroup"
	mount --rbind /sys/fs/cgroup "$work/cgroup"
	mount -t sysfs sysfs /sys
	mount --rbind "$work/cgroup" /sys/fs/cgroup
	mount -t tmpfs -o mode=755 tmpfs /run
	ip link set lo up
	# Made beforehand: with --bridge=none dockerd would delete the bridge of another daemon.
	ip link add bxdemo0 type bridge
	ip addr add 10.198.0.1/24 dev bxdemo0
	ip link set bxdemo0 up
	echo 1 >/proc/sys/net/ipv4/ip_forward
}

start_docker() {
	local log=$work/dockerd.log try
	cat >"$work/daemon.json" <<-END
	{ "runtimes": { "boxlite": { "path": "$work/usr/bin/boxlite" } } }
	END
	say "daemon.json: $(cat "$work/daemon.json")"
	export DOCKER_HOST=unix:///run/docker.sock DOCKER_CONFIG=$work
	dockerd --config-file "$work/daemon.json" --data-root "$work/docker" --exec-root /run/docker --pidfile /run/docker.pid \
		--host "$DOCKER_HOST" --bridge bxdemo0 --cgroup-parent "/${work##*/}" --exec-opt native.cgroupdriver=cgroupfs \
		>"$log" 2>&1 &
	for try in {1..300}; do
		! docker version >/dev/null 2>&1 || break
		if [ "$try" = 300 ] || ! kill -0 $! 2>/dev/null; then
			die "dockerd did not come up: $(tail -n 5 "$log")"
		fi
		sleep 0.1
	done
	make_image
}

# make_image packs the host's static busybox as an image, so that nothing has to be downloaded.
make_image() {
	local root=$work/image applet busybox
	busybox=$(command -v busybox)
	mkdir -p "$root"/{bin,etc,dev,proc,sys,tmp,root,mnt}
	cp "$busybox" "$root/bin/busybox"
	for applet in $("$busybox" --list); do
		[ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	tar -C "$root" -c . | docker import --change 'CMD ["sh"]' - busybox >/dev/null
	say 'Image "busybox" made of the one on this machine.'
}
