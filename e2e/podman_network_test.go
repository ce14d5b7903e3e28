package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

const httpServer = "mkdir -p /www && echo page >/www/index.html && httpd -h /www && echo serving && exec sleep 1000"

// Podman's bridge networks have netavark's addresses, aardvark's names and published ports: by netfilter for root, for the
// user by a forwarder that connects from inside the container's network namespace.
func TestPodmanBridge(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.ok("network", "create", "--subnet", "10.198.7.0/24", "net1")
		e.startReady("serving", "--name", "web", "--network", "net1", "-p", "127.0.0.1:18080:80", "busybox", "sh", "-c", httpServer)
		got := e.report("--network", "net1", "busybox", "sh", "-c", `
			echo "page=$(wget -qO- http://web/)"
			echo "network=$(ip -o -4 addr show dev eth0 | awk '{ print $4 }' | sed 's/[0-9]*\//x\//')"
			echo "gateway=$(ip route | awk '/default/ { print $3 }')"`)
		e.wantReport(got, map[string]string{"page": "page", "network": "10.198.7.x/24", "gateway": "10.198.7.1"})
		e.want("published port", fetch(e, "127.0.0.1:18080"), "page\n")
	})
}

// fetch gets / of an HTTP server on the host's network.
func fetch(e *podmanEnv, address string) string {
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
			e.startReady("serving", "--name", name, "--network", network, "-p", "127.0.0.1:18080:80", "busybox", "sh", "-c", httpServer)
			e.want("published port, by "+handler, fetch(e, "127.0.0.1:18080"), "page\n")
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
		e.startReady("serving", "--name", "web", "--network", "net1", "-p", "127.0.0.1:18080:80", "busybox", "sh", "-c", httpServer)
		for range 2 {
			e.ok("network", "reload", "web")
			e.shows("web", "1", "ping -c 1 -W 1 10.198.23.1 | grep -c ' 0% packet loss'")
			e.want("published port", fetch(e, "127.0.0.1:18080"), "page\n")
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

// A pod keeps its network in an infra container, which is idle: the VM of the pod's one container takes the network over
// from the infra container's VM, at each start anew.
func TestPodmanPodOfOne(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.makePod()
		member := func(name, script string) []string {
			return append([]string{"--pod", "pod", "--name", name}, append(e.runFlags(e.rt), "busybox", "sh", "-c", script)...)
		}
		e.ok(append([]string{"run", "-d"}, member("one", httpServer)...)...)
		e.want("host name", e.ok("exec", "one", "hostname"), "pod")
		gateway := e.ok("exec", "one", "sh", "-c", "ip route | awk '/default/ { print $3 }'")
		e.wantPart("ping of the gateway", e.ok("exec", "one", "ping", "-c", "1", "-W", "30", gateway), " 0% packet loss")
		if e.rt.isVM() {
			r := e.docker(append([]string{"run"}, member("two", "true")...)...)
			e.wantCode(r, 126)
			e.wantPart("stderr", r.stderr, "belongs to the VM of container "+e.inspect("one", ".Id")+" already, and two VMs cannot share a network namespace")
			e.ok("rm", "two")
		}
		e.ok("pod", "stop", "-t", "0", "pod")
		e.ok("pod", "start", "pod")
		e.wantPart("ping after a restart", e.ok("exec", "one", "ping", "-c", "1", "-W", "30", gateway), " 0% packet loss")
	})
}

// makePod makes a pod. Podman, which never asks for its cgroup in the hierarchies without a controller, leaves it there.
func (e *podmanEnv) makePod() {
	e.Helper()
	e.ok(append([]string{"pod", "create", "--name", "pod"}, e.runFlags(e.rt)...)...)
	if cgroup := e.ok("pod", "inspect", "--format", "{{.CgroupPath}}", "pod"); cgroup != "" {
		e.Cleanup(func() {
			e.removeAll()
			e.noErr(sh("for h in systemd unified; do d=/sys/fs/cgroup/$h" + cgroup + "; [ ! -d $d ] || rmdir $d; done"))
		})
	}
}

// Kube: podman's reading of a Kubernetes pod with one container.
func TestPodmanKube(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		file := filepath.Join(e.hostDir(), "pod.yaml")
		e.noErr(os.WriteFile(file, []byte(`
apiVersion: v1
kind: Pod
metadata:
  name: kube
spec:
  hostname: from-kube
  containers:
  - name: one
    image: localhost/busybox
    command: ["/bin/sh", "-c", "trap exit TERM; hostname; echo $WORD; sleep 1000 & wait"]
    env: [{name: PATH, value: /bin}, {name: WORD, value: kube-word}]
`), 0o644))
		e.ok("kube", "play", file)
		logs := e.session("logs", "-f", "kube-one")
		logs.expect("from-kube\nkube-word\n")
		logs.kill()
		e.wantPart("generated", e.ok("kube", "generate", "kube"), "value: kube-word")
		e.ok("kube", "down", file)
	})
}
