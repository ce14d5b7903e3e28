package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const httpServer = "mkdir -p /www && echo page >/www/index.html && httpd -h /www && echo serving && exec sleep 1000"

// Podman's bridge networks have netavark's addresses, aardvark's names and published ports: by netfilter for root, for the
// user by a forwarder that connects from inside the container's network namespace.
func TestPodmanBridge(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.ok("network", "create", "--subnet", "10.198.7.0/24", "net1")
		e.startReady("serving", "--name", "web", "--network", "net1", "--cap-add", "NET_RAW", "-p", "127.0.0.1:18080:80", "busybox", "sh", "-c", httpServer)
		got := e.report("--network", "net1", "busybox", "sh", "-c", `
			echo "page=$(wget -qO- http://web/)"
			echo "network=$(ip -o -4 addr show dev eth0 | awk '{ print $4 }' | sed 's/[0-9]*\//x\//')"
			echo "gateway=$(ip route | awk '/default/ { print $3 }')"`)
		e.wantReport(got, map[string]string{"page": "page", "network": "10.198.7.x/24", "gateway": "10.198.7.1"})
		e.want("published port", e.fetch("127.0.0.1:18080"), "page\n")
	})
}

// fetch gets / of an HTTP server on the host's network.
func (e *env) fetch(address string) string {
	e.Helper()
	client := http.Client{Timeout: deadline, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + address + "/")
	e.noErr(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	e.noErr(err)
	return string(text)
}

// slirp4netns owns a tap in the container's namespace: the VM takes it over like any other interface. Ports are forwarded by
// it, or by a program that connects from inside the namespace.
func TestPodmanSlirp(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		for handler, network := range map[string]string{"slirp4netns": "slirp4netns:port_handler=slirp4netns", "rootlesskit": "slirp4netns"} {
			name := "web-" + handler
			e.startReady("serving", "--name", name, "--network", network, "--cap-add", "NET_RAW", "-p", "127.0.0.1:18080:80", "busybox", "sh", "-c", httpServer)
			e.want("published port, by "+handler, e.fetch("127.0.0.1:18080"), "page\n")
			e.wantReport(parseReport(e.ok("exec", name, "sh", "-c", `
			echo "address=$(ip -o -4 addr show dev tap0 | awk '{ print $4 }')"
			echo "gateway=$(ip route | awk '/default/ { print $3 }')"
			echo "ping=$(ping -c 1 -W 10 10.0.2.2 | grep -c ' 0% packet loss')"`)),
				map[string]string{"address": "10.0.2.100/24", "gateway": "10.0.2.2", "ping": "1"})
			e.ok("rm", "-f", "-t", "0", name)
		}
	})
}

// reload sets a running container's network up anew.
func TestPodmanNetworkReload(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.ok("network", "create", "--subnet", "10.198.23.0/24", "net1")
		e.startReady("serving", "--name", "web", "--network", "net1", "--cap-add", "NET_RAW", "-p", "127.0.0.1:18080:80", "busybox", "sh", "-c", httpServer)
		for range 2 {
			e.ok("network", "reload", "web")
			e.shows("web", "1", "ping -c 1 -W 1 10.198.23.1 | grep -c ' 0% packet loss'")
			e.want("published port", e.fetch("127.0.0.1:18080"), "page\n")
		}
	})
}

func TestPodmanNoneAndHost(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.want("links without a network", e.runOK("--network", "none", "busybox", "ls", "/sys/class/net"), "lo")
		if e.rt.isVM() { // cannot have the host's interfaces, but reaches what they reach
			e.want("host network", e.runOK("--network", "host", "busybox", "sh", "-c", "ip -o -4 addr show dev eth0 | awk '{ print $4 }'"), "10.0.2.15/24")
		}
		e.runOK("--pid", "host", "busybox", "true")
	})
}

// A pod is one VM, that of its infra container, which the others join.
func TestPodmanPod(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.makePod()
		run := func(name, script string, flags ...string) []string {
			return slices.Concat([]string{"run", "--pod", "pod", "--name", name}, flags, e.runFlags(e.rt), []string{"busybox", "sh", "-c", script})
		}
		volume := e.hostDir()
		e.ok(run("one", httpServer, "-d", "--cap-add", "NET_RAW", "-v", volume+":/mnt")...)
		gateway := e.ok("exec", "one", "sh", "-c", "ip route | awk '/default/ { print $3 }'")
		reach := "ping -c 1 -W 30 " + gateway + " >/dev/null && echo pinged"
		fetch := "until wget -qO- http://127.0.0.1/ 2>/dev/null; do usleep 100000; done"
		e.want("the second", e.ok(run("two", fetch+"; hostname; "+reach+"; ls /www 2>&1; touch /mnt/of-two", "--rm", "--cap-add", "NET_RAW", "-v", volume+":/mnt")...),
			"page\npod\npinged\nls: /www: No such file or directory")
		e.want("volume", e.ok("exec", "one", "ls", "/mnt"), "of-two")
		events := e.watch("one", volume, "/mnt")
		e.noErr(os.Remove(filepath.Join(volume, "of-two")))
		e.want("events of the volume", events.told(), "delete /mnt/of-two\n")
		events.kill()
		e.ok(run("three", "echo shared >/dev/shm/file; trap exit TERM; sleep 1000 & wait", "-d")...)
		e.want("shared memory", e.ok("exec", "one", "sh", "-c", "until cat /dev/shm/file 2>/dev/null; do usleep 100000; done"), "shared")
		if e.rt.isVM() {
			e.want("kernels", e.ok("exec", "one", "cat", "/proc/sys/kernel/random/boot_id"), e.ok("exec", "three", "cat", "/proc/sys/kernel/random/boot_id"))
		}
		e.wantPart("top", e.ok("pod", "top", "pod"), "sleep 1000")
		e.ok("kill", "three")
		e.want("end of one", e.ok("wait", "three"), "137")
		e.want("state of the other", e.ok("inspect", "--format", "{{.State.Status}}", "one"), "running")
		e.ok("start", "three")
		e.ok("rm", "-f", "-t", "0", "three")
		if !e.rootless { // for want of cgroups
			e.ok("pod", "pause", "pod")
			e.want("state", e.ok("inspect", "--format", "{{.State.Status}}", "one"), "paused")
			e.ok("pod", "unpause", "pod")
			e.wantPart("stats", e.ok("pod", "stats", "--no-stream", "pod"), "one")
		}
		e.ok("pod", "stop", "-t", "0", "pod")
		e.ok("pod", "start", "pod")
		e.want("after a restart", e.ok("exec", "one", "sh", "-c", fetch+"; "+reach), "page\npinged")
		e.ok("pod", "kill", "pod")
		e.ok("pod", "start", "pod")
		e.want("after a kill", e.ok("exec", "one", "sh", "-c", fetch), "page") // the user's podman starts no slirp4netns again
	})
}

// Processes are in common where that is asked for: of a whole pod, or with another of its containers.
func TestPodmanPodProcesses(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.makePod("--share", "net,uts,ipc,pid")
		run := func(name string, flags ...string) []string {
			return slices.Concat([]string{"run", "-d", "--pod", "pod", "--name", name}, flags, e.runFlags(e.rt), []string{"busybox", "sleep", "1000"})
		}
		e.ok(run("one")...)
		e.ok(run("two")...)
		for _, name := range []string{"one", "two"} {
			e.want("processes as "+name+" sees them", e.ok("exec", name, "sh", "-c", "ps | grep -c '[s]leep 1000$'"), "2")
		}
		e.ok("exec", "one", "sh", "-c", "kill -9 $(ps | awk '/[s]leep 1000$/ { print $1 }' | tail -1)")
		e.want("end of a member that another has killed", e.ok("wait", "two"), "137")
		e.ok("pod", "rm", "-f", "-t", "0", "pod")

		e.makePod()
		e.ok(run("one")...)
		e.ok(run("beside", "--pid", "container:one", "--ipc", "container:one")...)
		e.want("processes as one sees them", e.ok("exec", "one", "sh", "-c", "ps | grep -c '[s]leep 1000$'"), "2")
		e.ok("kill", "one")
		e.want("end of who has joined them", e.ok("wait", "beside"), "137")
	})
}

// makePod makes a pod. Podman, which never asks for its cgroup in the hierarchies without a controller, leaves it there.
func (e *podmanEnv) makePod(flags ...string) {
	e.Helper()
	e.ok(slices.Concat([]string{"pod", "create", "--name", "pod"}, flags, e.runFlags(e.rt))...)
	if cgroup := e.ok("pod", "inspect", "--format", "{{.CgroupPath}}", "pod"); cgroup != "" {
		e.Cleanup(func() {
			e.removeAll()
			e.noErr(sh("for h in systemd unified; do d=/sys/fs/cgroup/$h" + cgroup + "; [ ! -d $d ] || rmdir $d; done"))
		})
	}
}

// Kube: podman's reading of a Kubernetes pod, with two containers after one that prepares for them.
func TestPodmanKube(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		dir := e.hostDir()
		file := filepath.Join(dir, "pod.yaml")
		e.noErr(os.WriteFile(file, []byte(`
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {word: from-a-map}
---
apiVersion: v1
kind: Pod
metadata:
  name: kube
  annotations: {io.podman.annotations.init.container.type: always} # once would have podman remove it, too early at times
spec:
  hostname: from-kube
  restartPolicy: Never # by Always, Podman 4.3 starts the init container anew each time it ends, under runc too
  volumes:
  - name: host
    hostPath: {path: `+dir+`, type: Directory}
  - name: words
    configMap: {name: words}
  initContainers:
  - name: first
    image: localhost/busybox
    command: ["/bin/sh", "-c", "echo prepared >/mnt/prepared"]
    env: [{name: PATH, value: /bin}]
    volumeMounts: [{name: host, mountPath: /mnt}]
  containers:
  - name: one
    image: localhost/busybox
    command: ["/bin/sh", "-c", "trap exit TERM; hostname; echo $WORD; cat /mnt/prepared /words/word; mkdir /www; echo page >/www/index.html; httpd -h /www; sleep 1000 & wait"]
    env: [{name: PATH, value: /bin}, {name: WORD, value: kube-word}]
    ports: [{containerPort: 80, hostIP: 127.0.0.1, hostPort: 18080}]
    volumeMounts: [{name: host, mountPath: /mnt}, {name: words, mountPath: /words}]
  - name: two
    image: localhost/busybox
    command: ["/bin/sh", "-c", "trap exit TERM; until wget -qO- http://127.0.0.1/ 2>/dev/null; do usleep 100000; done; sleep 1000 & wait"]
    env: [{name: PATH, value: /bin}]
`), 0o644))
		e.ok("kube", "play", file)
		logs := e.session("logs", "-f", "kube-one")
		logs.expect("from-kube\nkube-word\nprepared\nfrom-a-map")
		logs.kill()
		logs = e.session("logs", "-f", "kube-two")
		logs.expect("page\n")
		logs.kill()
		e.want("published port", e.fetch("127.0.0.1:18080"), "page\n")
		e.wantPart("generated", e.ok("kube", "generate", "kube"), "value: kube-word")
		e.ok("kube", "down", file)
	})
}
