#!/bin/bash
# Runs every fuzz target of the tree for a while each, one after the other, and ends at the first that fails. The
# targets are found: nobody keeps a list.
set -euo pipefail

usage() {
	cat <<-END
	usage: scripts/fuzz.sh TIME [NAME]

	  TIME  for each target, as go test's -fuzztime has it: 1m, 3s, 1000x
	  NAME  a regular expression that the targets' names match; without it all of them

	GOMAXPROCS is how many processes fuzz at once, by default as many as there are processors.
	END
}

if [ $# -lt 1 ] || [ "$1" = --help ]; then
	usage >&2
	exit 2
fi
fuzztime=$1 name=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
go=${GO:-go}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# One build for all targets of a package; go test would link again for each.
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u >"$dir/packages"
found=
while read -r package; do
	"$go" test -c -fuzz=. -o "$dir/test" "$package"
	cache=$("$go" env GOCACHE)/fuzz/$("$go" list "$package")
	mkdir -p "$cache"
	(cd "$package" && "$dir/test" -test.list "^Fuzz.*$name") >"$dir/targets"
	while read -r target; do
		echo "-- ${package#./} $target"
		found=yes
		# Without a limit the making of inputs smaller takes most of the time.
		if (cd "$package" && "$dir/test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$fuzztime" \
			-test.fuzzminimizetime 50x -test.fuzzcachedir "$cache") >"$dir/log" 2>&1 </dev/null; then
			grep execs "$dir/log" | tail -n 1
			continue
		fi
		# The end of the time is at times taken for a failure, golang.org/issue/75804. A real one names its input.
		if ! grep -q 'testdata/fuzz/' "$dir/log" && grep -q '^ *context deadline exceeded$' "$dir/log"; then
			echo 'ended late'
			continue
		fi
		cat "$dir/log"
		exit 1
	done <"$dir/targets"
done <"$dir/packages"
if [ -z "$found" ]; then
	echo "no fuzz target matches '$name'" >&2
	exit 1
fi
