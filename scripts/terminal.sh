#!/bin/bash
# Draws docs/terminal.svg, the recorded terminal of README.md: runs the commands below through a Docker daemon of its own
# and draws what they print. `make terminal` runs it. A command that fails ends it, and the drawing stays as it was.
set -euo pipefail

# shellcheck source=scripts/private-docker.sh
source "$(dirname "${BASH_SOURCE[0]}")/private-docker.sh"

outside() {
	[ "$(id -u)" = 0 ] || die 'network namespaces and a Docker daemon need root: sudo make terminal'
	make_work
	install_boxlite "$repo/bin"
	run_inside "$repo/scripts/terminal.sh"
	draw <"$work/recording" >"$work/terminal.svg"
	cp "$work/terminal.svg" "$repo/docs/terminal.svg"
	say 'docs/terminal.svg is drawn.'
}

inside() {
	enter_host "$1"
	start_docker
	show_commands >"$work/recording"
	grep -q '^[0-9.]*-boxlite-lean$' "$work/recording" || die "the container's kernel is not boxlite's: $(cat "$work/recording")"
}

show_commands() {
	say '# the kernel of the host, and that of a container'
	run uname -r
	run docker run --rm --runtime boxlite busybox uname -r
	say
	say '# all capabilities: a bridge, a mount and a kernel parameter, in the container'\''s own kernel'
	cat >"$work/privileged" <<-'END'
	ip link add br0 type bridge
	echo $(ls /sys/class/net)
	mount -t tmpfs mine /mnt && grep /mnt /proc/mounts
	sysctl -w vm.swappiness=7
	END
	run cat "$work/privileged"
	run_from "$work/privileged" docker run -i --rm --runtime boxlite --cap-add ALL busybox sh
	say
	say '# the host has none of them'
	run sysctl vm.swappiness
	run_to_fail ip link show br0
}

# run COMMAND... shows a command as typed, and what it prints.
run() { run_from /dev/null "$@"; }

run_from() {
	local input=$1 typed
	shift
	typed="$*"
	[ "$input" = /dev/null ] || typed="$typed <${input##*/}"
	say "\$ ${typed//"$work/"/}"
	"$@" <"$input" 2>&1 || die "$*: status $?"
}

run_to_fail() {
	say "\$ $*"
	! "$@" 2>&1 || die "$*: no failure"
}

# draw makes an SVG of the recording on stdin: a line of text each, comments dim, commands bright.
draw() {
	awk -v advance=8 -v leading=18 -v margin=16 '
		{ gsub(/&/, "\\&amp;"); gsub(/</, "\\&lt;"); gsub(/>/, "\\&gt;"); gsub(/\t/, "        "); line[NR] = $0 }
		END {
			width = 110 * advance + 2 * margin
			height = NR * leading + 2 * margin
			printf "<?xml version=\"1.0\"?>\n<!-- Drawn by scripts/terminal.sh. -->\n"
			printf "<svg width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" xmlns=\"http://www.w3.org/2000/svg\">\n", width, height, width, height
			printf "<rect width=\"%d\" height=\"%d\" rx=\"8\" fill=\"#1c2128\"/>\n", width, height
			printf "<g font-family=\"ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace\" font-size=\"13\" xml:space=\"preserve\">\n"
			for (i = 1; i <= NR; i++) {
				colour = line[i] ~ /^#/ ? "#8b949e" : line[i] ~ /^\$ / ? "#7ee787" : "#e6edf3"
				printf "<text x=\"%d\" y=\"%d\" fill=\"%s\">%s</text>\n", margin, margin + i * leading - 5, colour, line[i]
			}
			print "</g>\n</svg>"
		}'
}

if [ "${1:-}" = inside ]; then
	inside "$2"
else
	outside
fi
