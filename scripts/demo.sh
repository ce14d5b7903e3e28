#!/bin/bash
# Shows boxlite at work: installs what is missing, builds, and runs containers through a Docker daemon of its own, saying
# what each one shows. Daemon and containers live in network, mount and pid namespaces of their own, the files in one
# directory and one cgroup: when the script ends, in whatever way, nothing of them is left. `make demo` runs it.
set -euo pipefail

# shellcheck source=scripts/private-docker.sh
source "$(dirname "${BASH_SOURCE[0]}")/private-docker.sh"

bold='' dim='' plain=''
if [ -t 1 ]; then
	bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
fi

title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

# The outside: prepares $work, runs the inside in its namespaces, cleans up.

outside() {
	[ "$(id -u)" = 0 ] || die 'network namespaces and a Docker daemon need root: sudo make demo'
	title 'What is missing on this machine'
	"$repo/scripts/install-deps.sh" prebuilt run demo
	say 'Everything is there.'
	title 'Building'
	local parts=$repo/bin
	if "$repo/kernels/build.sh" --cached --out "$repo/bin" lean net 2>/dev/null; then
		make -C "$repo" --no-print-directory bin/boxlite bin/initramfs.cpio
	else
		parts=$repo/bin/prebuilt
		make -C "$repo" --no-print-directory prebuilt
		because 'The guest kernels are not compiled yet. A kernel that Debian has built stands in, which starts later.'
	fi

	make_work
	title "Installing into $work/usr, for this demo only"
	install_boxlite "$parts"
	say "\$ boxlite check"
	"$work/usr/bin/boxlite" check || die 'boxlite check says what to do'

	run_inside "$repo/scripts/demo.sh" containers "$parts"

	title 'An image with Docker in it (the first time it is made, from Debian packages)'
	"$repo/images/build.sh" dind
	run_inside "$repo/scripts/demo.sh" docker "$parts"

	title 'What now'
	cat <<-END
	make                                   compiles the guest kernels: about ten minutes on two processors, once
	sudo make install                      installs to /usr/local; README.md says how to register it with your Docker or Podman
	docker run --rm --runtime boxlite ...  is then all there is to it
	sudo make test                         runs the tests
	END
}

# The inside: PID 1 of its namespaces.

# inside WORK containers|docker PARTS
inside() {
	enter_host "$1"
	if [ "$3" != "$repo/bin" ]; then
		lean=cloud-amd64 net=cloud-amd64
	fi
	title 'Starting a Docker daemon of its own'
	start_docker
	"show_$2"
	if [ "$surprises" -gt 0 ]; then
		die "$surprises commands did not do what they should"
	fi
}

# What uname -r ends with in the guests.
lean=boxlite-lean net=boxlite-net

surprises=0

# run COMMAND [STATUS] [PATTERN] prints the command as typed and runs it. It shall end with that status (default 0) and
# print something that matches the pattern.
run() {
	local status=0 want=${2:-0} pattern=${3:-} out=$work/out
	printf '%s$ %s%s\n' "$bold" "$1" "$plain"
	eval "$1" >"$out" 2>&1 || status=$?
	cat "$out"
	if [ "$status" != "$want" ]; then
		say "demo: exit status $status, expected $want"
	elif [ -n "$pattern" ] && ! grep -Eq -- "$pattern" "$out"; then
		say "demo: expected output that matches $pattern"
	else
		return 0
	fi
	surprises=$((surprises + 1))
}

because() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }

show_containers() {
	title 'A kernel of its own'
	because 'The host, a container of runc (which shares the host'\''s kernel), and one of boxlite:'
	run 'uname -r'
	run 'docker run --rm --runtime runc busybox uname -r' 0 "$(uname -r)"
	run 'docker run --rm --runtime boxlite busybox uname -r' 0 "$lean"

	title 'It is an ordinary container'
	because 'stdin and stdout are pipes from end to end:'
	run 'echo "hello from the host" | docker run -i --rm --runtime boxlite busybox tr a-z A-Z' 0 'HELLO FROM THE HOST'
	because 'The exit code arrives:'
	run 'docker run --rm --runtime boxlite busybox sh -c "exit 42"; echo "exit code $?"' 0 'exit code 42'
	because 'A volume is a directory of the host, live:'
	mkdir "$work/data"
	run "docker run --rm --runtime boxlite -v $work/data:/data busybox sh -c 'uname -r >/data/kernel'"
	run "cat $work/data/kernel" 0 "$lean"

	title 'Network, logs, exec'
	run "docker run -d --name web --runtime boxlite -p 8080:80 busybox sh -c 'echo \"page from \$(uname -r)\" >/tmp/index.html; echo serving; exec httpd -f -p 80 -h /tmp'"
	local ip
	ip=$(docker inspect --format '{{.NetworkSettings.Networks.bridge.IPAddress}}' web)
	until_serving "$ip"
	because "Another container, in another VM, fetches a page from it over Docker's bridge:"
	run "docker run --rm --runtime boxlite busybox wget -qO- http://$ip/" 0 'page from'
	because 'The host fetches it through the published port:'
	run 'busybox wget -qO- http://127.0.0.1:8080/' 0 'page from'
	because 'And a container reaches a server on the host:'
	busybox httpd -p 10.198.0.1:8081 -h "$work/data"
	run 'docker run --rm --runtime boxlite busybox wget -qO- http://10.198.0.1:8081/kernel' 0 "$lean"
	run 'docker logs web' 0 serving
	run 'docker exec web ps' 0 httpd
	because 'The host sees the process of its monitor, which stands for it:'
	run 'docker top web -o pid,rss,args' 0 httpd
	run 'docker rm -f web'

	title 'Limits'
	because 'tail keeps all of an endless line in memory, of which it may have 64 MiB; 137 is 128 and SIGKILL:'
	run 'docker run --rm --runtime boxlite --memory 64m busybox tail /dev/zero; echo "exit code $?"' 0 'exit code 137'

	title 'All capabilities, and the host is none the worse'
	local swappiness
	swappiness=$(cat /proc/sys/vm/swappiness)
	because 'With the kernel its own, the container may mount, make interfaces and set kernel parameters:'
	run "docker run --rm --runtime boxlite --cap-add ALL busybox sh -c 'mount -t tmpfs demo /mnt && grep /mnt /proc/mounts; ip link add br0 type bridge && ip -o link show br0; sysctl -w vm.swappiness=7; uname -r'" 0 "$net"
	because 'The host'\''s parameter is what it was:'
	run 'cat /proc/sys/vm/swappiness' 0 "^$swappiness\$"

}

show_docker() {
	title 'Docker in Docker'
	because 'A dockerd of its own in a container, with its own bridge, firewall and cgroups:'
	"$repo/images/build.sh" --import dind >/dev/null
	run "docker run -d --name dind --runtime boxlite --cap-add ALL -v $work/image:/busybox:ro boxlite/dind"
	until_logged dind 'API listen'
	run "docker exec dind docker version --format 'client {{.Client.Version}}, server {{.Server.Version}}'" 0 'server [0-9]'
	run "docker exec dind sh -c 'tar -C /busybox -c . | docker import - busybox >/dev/null && docker run --rm busybox echo hello from a container in a container'" 0 'hello from'
	run 'docker rm -fv dind'
}

until_logged() {
	local try
	for try in {1..600}; do
		! docker logs "$1" 2>&1 | grep -q "$2" || return 0
		sleep 0.2
	done
	say "demo: $1 did not log $2 (try $try)"
}

until_serving() {
	local try
	for try in {1..100}; do
		! busybox wget -qO /dev/null "http://$1/" 2>/dev/null || return 0
		sleep 0.1
	done
	say "demo: no answer from $1 (try $try)"
}

if [ "${1:-}" = inside ]; then
	inside "$2" "$3" "$4"
else
	outside
fi
