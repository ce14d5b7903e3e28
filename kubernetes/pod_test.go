package kubernetes

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Init containers run one after the other before the others. A sidecar, which is one that goes on, lives as long as they do
// and does not keep the pod from ending well.
func TestInitContainers(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  runtimeClassName: $RUNTIME
  restartPolicy: Never
  volumes: [{name: data, emptyDir: {}}]
  initContainers:
  - name: first
    image: $IMAGE
    command: [sh, -c, "echo first >/data/log"]
    volumeMounts: [{name: data, mountPath: /data}]
  - name: sidecar
    image: $IMAGE
    restartPolicy: Always
    command: [sh, -c, "trap 'echo sidecar ends; exit 0' TERM; echo sidecar >>/data/log; touch /data/up; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [test, -e, /data/up]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
    volumeMounts: [{name: data, mountPath: /data}]
  - name: second
    image: $IMAGE
    command: [sh, -c, "echo second >>/data/log"]
    volumeMounts: [{name: data, mountPath: /data}]
  containers:
  - name: main
    image: $IMAGE
    command: [sh, -c, "cat /data/log; exit 0"]
    volumeMounts: [{name: data, mountPath: /data}]
`)
		e.wait("pod/pod", "jsonpath={.status.phase}=Succeeded")
		e.want("order of the containers", e.ok("logs", "pod", "--container", "main"), "first\nsidecar\nsecond")
		e.want("log of the sidecar", e.ok("logs", "pod", "--container", "sidecar"), "sidecar ends")
	})
}

// Containers that have their processes in common see each other's and signal them.
func TestShareProcessNamespace(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
$POD(pod)
  shareProcessNamespace: true
  containers:
  - {name: one, image: $IMAGE, command: [sh, -c, "echo in one >/file; trap 'echo signal; exit 3' USR1; while :; do sleep 0.1; done"]}
  - {name: two, image: $IMAGE, command: [sleep, "12345"]}
---
$POD(apart)
  containers:
  - {name: one, image: $IMAGE, command: [sleep, "10000"]}
  - {name: two, image: $IMAGE, command: [sleep, "12345"]}
`)
		e.ready("pod")
		e.ready("apart")
		const count = "ps -o args | grep -c '[s]leep 12345'; true"
		e.want("processes of two that one sees", e.in("pod", "one", count), "1")
		e.want("processes of two that one sees, without having them in common", e.in("apart", "one", count), "0")
		e.wantPart("PID 1", e.in("pod", "one", "tr '\\0' ' ' </proc/1/cmdline"), "tail -f /dev/null")
		const one = `one=$(ps -o pid,args | awk '/[e]cho in one/ { print $1 }'); `
		e.want("a file of one, by two", e.in("pod", "two", one+"cat /proc/$one/root/file"), "in one")
		e.in("pod", "two", one+"kill -USR1 $one")
		e.becomes("restarts of one, which two has ended", "1", func() string { return e.status("pod", "one", ".restartCount") })
		e.want("exit code of one", e.status("pod", "one", ".lastState.terminated.exitCode"), "3")
		e.want("restarts of two", e.status("pod", "two", ".restartCount"), "0")
	})
}

// What people do by kubectl with a container that runs.
func TestKubectl(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
$POD(pod)
  containers:
  - name: web
    image: $IMAGE
    command: [sh, -c, "mkdir /www; echo page >/www/index.html; httpd -p 8080 -h /www; echo one; echo two >&2; while read -r line; do echo read $line; done; exec sleep 10000"]
    stdin: true
  - {name: other, image: $IMAGE, command: [sh, -c, "echo other; exec sleep 10000"]}
`)
		e.ready("pod")
		r := e.kubectl(strings.NewReader("to stdin"), "exec", "pod", "--container", "web", "--stdin", "--", "sh", "-c", "cat; echo error >&2; exit 7")
		e.want("stdout of exec", r.stdout, "to stdin")
		e.wantPart("stderr of exec", r.stderr, "error\n")
		if r.code != 7 {
			e.Errorf("exit status of exec = %d, want 7", r.code)
		}
		r = e.kubectl(nil, "exec", "pod", "--container", "web", "--", "nothing-like-it")
		e.wantPart("exec of what is not there", r.stderr, `exec: "nothing-like-it": executable file not found in $PATH`)

		// What goes to stdout and to stderr has no order among each other.
		log := func() string {
			lines := strings.Split(e.ok("logs", "pod", "--container", "web"), "\n")
			slices.Sort(lines)
			return strings.Join(lines, "\n")
		}
		e.becomes("log of web", "one\ntwo", log)
		e.want("log of other", e.ok("logs", "pod", "--container", "other"), "other")
		e.kubectl(strings.NewReader("a line\n"), "attach", "pod", "--container", "web", "--stdin") // ends with its stdin, maybe before an answer
		e.becomes("log of web after attach", "one\nread a line\ntwo", log)

		local := filepath.Join(e.dir, "local")
		e.noErr(os.WriteFile(local, []byte("copied\n"), 0o600))
		e.ok("cp", local, "pod:/tmp/remote", "--container", "web")
		e.want("the file that was copied", e.in("pod", "web", "cat /tmp/remote; stat -c %a /tmp/remote"), "copied\n600")
		e.in("pod", "web", "mkdir /tmp/dir; dd if=/dev/zero of=/tmp/dir/large bs=1M count=8 2>/dev/null; ln -s large /tmp/dir/link")
		e.ok("cp", "pod:/tmp/dir", filepath.Join(e.dir, "dir"), "--container", "web")
		info, err := os.Stat(filepath.Join(e.dir, "dir/large"))
		e.noErr(err)
		if info.Size() != 8<<20 {
			e.Errorf("the file that was copied back has %d bytes, want 8 MiB", info.Size())
		}
		e.want("the page through port-forward", e.forwarded("pod", 8080), "page\n")
	})
}

// forwarded gets a page through kubectl port-forward.
func (e *env) forwarded(pod string, port int) string {
	e.Helper()
	cmd := cluster.kubectl(e.Context(), "--namespace", e.namespace, "port-forward", pod, fmt.Sprintf(":%d", port))
	stdout, err := cmd.StdoutPipe()
	e.noErr(err)
	e.noErr(cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // by that signal
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	e.noErr(err)
	address, _, found := strings.Cut(strings.TrimPrefix(line, "Forwarding from "), " -> ")
	if !found {
		e.Fatalf("port-forward says %q", line)
	}
	client := http.Client{Timeout: patience}
	response, err := client.Get("http://" + address + "/")
	e.noErr(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	e.noErr(err)
	return string(body)
}

// An ephemeral container joins a pod that runs, and the processes of the container that it targets.
func TestEphemeralContainer(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
$POD(pod)
  containers:
  - {name: main, image: $IMAGE, command: [sh, -c, "mkdir /www; echo page >/www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"]}
  - {name: other, image: $IMAGE, command: [sleep, "12345"]}
`)
		e.ready("pod")
		e.ok("debug", "pod", "--image", image, "--container", "debugger", "--target", "main", "--attach=false", "--",
			"sh", "-c", "wget -qO- http://127.0.0.1:8080/; pidof httpd; cat /proc/1/root/www/index.html; ps -o args | grep -c '[s]leep 12345'; true")
		ended := func() string {
			return e.of("pod/pod", ".status.ephemeralContainerStatuses[0].state.terminated.exitCode")
		}
		e.becomes("exit code of the debugger", "0", ended)
		e.want("what the debugger sees", e.ok("logs", "pod", "--container", "debugger"), "page\n1\npage\n0")
		e.want("restarts of the one that was looked at", e.status("pod", "main", ".restartCount"), "0")
	})
}

// A pod that is deleted has its time: first its hook, then its signal, and SIGKILL to who does not end.
func TestGracefulDeletion(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  runtimeClassName: $RUNTIME
  terminationGracePeriodSeconds: 12
  volumes: [{name: host, hostPath: {path: $DIR}}]
  containers:
  - name: polite
    image: $IMAGE
    command: [sh, -c, "trap 'echo signal >>/host/polite; sleep 2; echo end >>/host/polite; exit 0' TERM; while :; do sleep 0.1; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >>/host/polite"]}}}
    volumeMounts: [{name: host, mountPath: /host}]
  - name: deaf
    image: $IMAGE
    command: [sh, -c, "trap 'echo deaf >>/host/deaf' TERM; while :; do date +%s >/host/lived; sleep 0.1; done"]
    volumeMounts: [{name: host, mountPath: /host}]
`)
		e.ready("pod")
		began := time.Now()
		e.ok("delete", "pod", "pod", "--timeout", patience.String())
		took := time.Since(began)
		e.want("the end of the polite one", e.file("polite"), "hook\nsignal\nend")
		e.want("the signal of the deaf one", e.file("deaf"), "deaf")
		if took < 12*time.Second {
			e.Errorf("the deletion took %v, want the deaf one to have its 12 s", took)
		}
		var lived int64
		if _, err := fmt.Sscan(e.file("lived"), &lived); err != nil {
			e.Fatal(err)
		}
		if last := time.Unix(lived, 0).Sub(began); last < 9*time.Second || last > 20*time.Second {
			e.Errorf("the deaf one lived for %v after the deletion began, want 12 s", last)
		}
	})
}
