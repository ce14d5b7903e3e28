package kubernetes

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// The node's programs are restarted under pods that run, as by an upgrade. Pods go on, and are the node's as before.
func TestNodeRestart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		const pod = `
$POD(%s)
  containers:
  - name: one
    image: $IMAGE
    command: [sh, -c, "echo begins; exec sleep 10000"]
    livenessProbe: {exec: {command: [test, -e, /file]}, initialDelaySeconds: 20, periodSeconds: 2, timeoutSeconds: 10}
  - {name: two, image: $IMAGE, command: [sleep, "10000"]}
`
		e.apply(fmt.Sprintf(pod, "pod"))
		e.ready("pod")
		e.in("pod", "one", "touch /file")
		for _, programs := range [][]string{{"kubelet"}, {"containerd"}, {"containerd", "kubelet"}} {
			for _, program := range programs {
				cluster.restart(t, program)
			}
			what := "restart of " + strings.Join(programs, " and ")
			e.becomes("exec after a "+what, "alive", func() string {
				return strings.TrimSpace(e.kubectl(nil, "exec", "pod", "--container", "one", "--", "sh", "-c", "ls /file >/dev/null && echo alive").stdout)
			})
			e.noErr(cluster.await())
			e.apply(fmt.Sprintf(pod, "later"))
			e.ready("later")
			e.in("later", "one", "touch /file")
			e.ok("delete", "pod", "later", "--timeout", patience.String())
			e.want("log after a "+what, e.ok("logs", "pod", "--container", "one"), "begins")
			for _, container := range []string{"one", "two"} {
				e.want("restarts of "+container+" after a "+what, e.status("pod", container, ".restartCount"), "0")
			}
		}
		e.ready("pod")
	})
}

// Containers that crash start anew, some twenty times in all. They leave nothing with the VM's processes, and their
// neighbour goes on.
func TestCrashes(t *testing.T) {
	eachRuntime(t, func(e *env) {
		const crashing, starts = 5, 5 // each of the containers; kubelet waits for 10, 20, 40 and 80 s in between
		var pod strings.Builder
		pod.WriteString(`
$POD(pod)
  volumes: [{name: data, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}]
  containers:
  - {name: steady, image: $IMAGE, command: [sleep, "10000"], volumeMounts: [{name: data, mountPath: /data}]}
`)
		for i := range crashing {
			fmt.Fprintf(&pod, `  - name: crashing%d
    image: $IMAGE
    command: [sh, -c, "echo start >>/data/%[1]d; sleep 1; exit %[1]d"]
    volumeMounts: [{name: data, mountPath: /data}, {name: memory, mountPath: /memory}]
`, i)
		}
		e.apply(pod.String())
		// rest waits until all have started so many times at least, have ended, and wait for their next start.
		rest := func(times int) {
			e.becomes(fmt.Sprintf("the containers wait after %d starts", times), "", func() (busy string) {
				for line := range strings.Lines(e.ok("get", "pod", "pod", "--output",
					`jsonpath={range .status.containerStatuses[?(@.name!="steady")]}{.restartCount} {.state.waiting.reason}{"\n"}{end}`)) {
					var restarts int
					var reason string
					if n, _ := fmt.Sscan(line, &restarts, &reason); n < 2 || restarts+1 < times || reason != "CrashLoopBackOff" {
						busy += line
					}
				}
				return busy
			})
		}
		rest(2)
		first := e.processes()
		rest(starts)
		e.becomes("what the VM's processes have after the last start", first, e.processes)
		for i := range crashing {
			began, err := strconv.Atoi(e.in("pod", "steady", fmt.Sprintf("wc -l </data/%d", i)))
			e.noErr(err)
			if began < starts {
				e.Errorf("crashing%d has begun %d times, want %d at least", i, began, starts)
			}
			e.want(fmt.Sprint("exit code of crashing", i), e.status("pod", fmt.Sprint("crashing", i), ".lastState.terminated.exitCode"), fmt.Sprint(i))
		}
		e.want("restarts of the steady one", e.status("pod", "steady", ".restartCount"), "0")
	})
}

// processes has the descriptors and mounts of the VM's processes on the node, or nothing if there is no VM.
func (e *env) processes() string {
	e.Helper()
	return e.onNode(`qemu=$(pidof qemu-system-x86_64) || exit 0
monitor=$(sed -n 's/^PPid:.//p' /proc/$qemu/status)
for pid in $monitor $(cat /proc/$monitor/task/*/children); do
	echo "$(cat /proc/$pid/comm): $(ls /proc/$pid/fd | wc -l) descriptors, $(wc -l </proc/$pid/mountinfo) mounts"
done`)
}
