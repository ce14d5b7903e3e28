#!/bin/bash
# Runs the end-to-end tests in two halves beside each other, each in namespaces and with a dockerd of its own. What a test
# waits for leaves processors idle that the other half uses. Then come the tests that want the machine for themselves.
# Arguments are for the test binary: -test.timeout=60m. The output of a half that fails is shown whole, at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../e2e"
go=${GO:-go}

# They keep all processors busy by themselves, or hold what comes out against a time.
alone=(TestCPULimit TestClockOfBusyBoots TestHostileByHand)

work=$(mktemp -d /var/tmp/boxlite-e2e-halves-XXXXXX)
pids=()
finish() {
	for pid in "${pids[@]}"; do
		kill -TERM "$pid" 2>/dev/null || true # the outer stage ends what it has started
		wait "$pid" || true
	done
	rm -rf "$work"
}
trap finish EXIT

"$go" test -c -o "$work/e2e.test" .
mapfile -t all < <("$work/e2e.test" -test.list . | grep '^Test')
[ ${#all[@]} -gt 0 ] || { echo "scripts/e2e.sh: no tests" >&2 && exit 1; }

# pattern makes -test.run of names.
pattern() {
	local IFS='|'
	echo "^($*)\$"
}

# Neighbours in the list are often of one kind, and take as long as each other.
first=() second=() last=()
for name in "${all[@]}"; do
	if [[ " ${alone[*]} " == *" $name "* ]]; then
		last+=("$name")
	elif [ ${#first[@]} -le ${#second[@]} ]; then
		first+=("$name")
	else
		second+=("$name")
	fi
done
[ ${#last[@]} -eq ${#alone[@]} ] || { echo "scripts/e2e.sh: a test of ${alone[*]} does not exist" >&2 && exit 1; }

# progress shows the results of the tests of the top level while they come.
progress() {
	grep --line-buffered -E '^(--- (PASS|FAIL|SKIP)|panic:|FAIL|PASS)' || true
}

# run becomes the test binary, in a subshell, with a name for the log and the names of tests.
run() {
	local log=$work/$1.log
	shift
	exec "$work/e2e.test" -test.v -test.run "$(pattern "$@")" "${args[@]}" > >(tee "$log" | progress) 2>&1
}

args=("$@")
(run first "${first[@]}") &
pids+=($!)
(run second "${second[@]}") &
pids+=($!)
failed=()
wait "${pids[0]}" || failed+=(first)
wait "${pids[1]}" || failed+=(second)
pids=()
(run last "${last[@]}") || failed+=(last)
for name in "${failed[@]}"; do
	echo "== the $name tests failed; their output:"
	cat "$work/$name.log"
done
[ ${#failed[@]} -eq 0 ]
