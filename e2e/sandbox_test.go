package e2e

import (
	"slices"
	"strings"
	"testing"
)

// sandboxFlags are those of docs/ci-and-agents.md for code that nobody has read.
const sandboxFlags = "--network none --memory 256m --memory-swap 256m --pids-limit 64 --cpus 1 --read-only --tmpfs /tmp:size=32m,mode=1777 " +
	"--cap-drop ALL --security-opt no-new-privileges --user 1000:1000"

// Code of a model, or of a stranger: what it may not do, and how each way to take all of a resource ends.
func TestSandboxForCode(t *testing.T) {
	eachRuntime(t, func(e *env) {
		sandbox := func(command ...string) []string {
			return slices.Concat(strings.Fields(sandboxFlags), []string{"busybox"}, command)
		}
		got := e.report(sandbox("sh", "-c", `
touch /x 2>/dev/null || echo "root=read-only"
echo code >/tmp/x && echo "tmp=$(cat /tmp/x)"
head -c 64m /dev/zero 2>/dev/null >/tmp/big; echo "tmp-size=$(($(stat -c %s /tmp/big) <= 32 << 20))"
mount -t tmpfs none /tmp 2>/dev/null || echo "mount=refused"
echo "routes=$(ip route | wc -l)"
echo "user=$(id -u)"`)...)
		e.wantReport(got, map[string]string{"root": "read-only", "tmp": "code", "tmp-size": "1", "mount": "refused", "routes": "0", "user": "1000"})

		e.wantCode(e.run(sandbox("probe", "hog", "512")...), 137)
		// When the limit is reached, the shells can start nothing more and end.
		bomb := e.run(sandbox("sh", "-c", "b() { b | b & }; b; while :; do sleep 1000 & done")...)
		e.wantCode(bomb, 2)
		e.wantPart("stderr of the fork bomb", bomb.stderr, "can't fork")

		loop := e.start(sandbox("sh", "-c", "trap '' TERM INT HUP; while :; do :; done")...)
		e.ok("rm", "-f", loop)
		if list := e.ok("ps", "-aq", "--no-trunc"); strings.Contains(list, loop) {
			e.Errorf("ps -a after rm -f lists %s", loop)
		}
	})
}
