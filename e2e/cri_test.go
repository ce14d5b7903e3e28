package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
)

// A cri is a containerd that serves Kubernetes' Container Runtime Interface, as on a node, with a network by CNI. It is an
// engine: its command is crictl.
type cri struct {
	crictl string
	dir    string // on disk: images, configuration, log
}

const (
	criState  = "/run/cri"
	criSocket = "/run/cri.sock"
	criBridge = "bxcri0"
)

func (c cri) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.crictl, append([]string{"--config", filepath.Join(c.dir, "crictl.yaml")}, args...)...)
}

func (c cri) runFlags(rt ociRuntime) []string { return []string{"--runtime", rt.name} }

// startCRI makes the case's engine such a containerd, until the case ends.
func (e *env) startCRI() cri {
	e.Helper()
	tools := exec.Command("go", "run", "./conformance", "-cri-tools") // make cri-tools has built them; here is no network
	tools.Dir = ".."
	built, err := tools.Output()
	if err != nil {
		e.Fatalf("crictl: %v: make cri-tools", err)
	}
	c := cri{crictl: filepath.Join(strings.TrimSpace(string(built)), "crictl"), dir: filepath.Join(e.diskDir(), "cri")}
	e.noErr(c.configure())
	e.forgetCNI()
	log, err := os.Create(filepath.Join(c.dir, "log"))
	e.noErr(err)
	defer log.Close()
	daemon := exec.Command("containerd", "--config", filepath.Join(c.dir, "config.toml"))
	daemon.Stdout, daemon.Stderr = log, log
	e.noErr(daemon.Start())
	e.Cleanup(func() {
		if e.Failed() {
			text, _ := os.ReadFile(log.Name())
			e.Logf("containerd's log: %s", text[max(0, len(text)-6000):])
		}
		e.noErr(daemon.Process.Signal(syscall.SIGTERM))
		_ = daemon.Wait() // by that signal
		// What stays of a node's first pod: the bridge, empty directories, and a mount on itself of the namespaces' one.
		e.noErr(sh("ip link del " + criBridge + " 2>/dev/null || true; rm -rf " + criState + " " + criSocket + "*; rmdir /run/containerd/runc/k8s.io /run/containerd/runc /run/containerd/s /run/containerd 2>/dev/null || true"))
	})
	ctr := func(args ...string) *exec.Cmd {
		return exec.Command("ctr", append([]string{"--address", criSocket, "--namespace", "k8s.io"}, args...)...)
	}
	if err := waitFor("containerd answers", func() bool { return ctr("version").Run() == nil }); err != nil {
		e.Fatal(err)
	}
	// The sandbox's image is the same root file system with a process that ends by a signal only.
	e.noErr(sh(fmt.Sprintf(`export DOCKER_HOST=unix://%[1]s
tar -C %[2]s/rootfs -c . | %[3]s import --change 'CMD ["/bin/probe", "signals"]' - pause:1
%[3]s save -o %[4]s/images.tar busybox pause:1
%[3]s rmi pause:1`, e.d.socket(), workDir, dockerBin, c.dir)))
	if out, err := ctr("images", "import", filepath.Join(c.dir, "images.tar")).CombinedOutput(); err != nil {
		e.Fatalf("import images: %v: %s", err, out)
	}
	e.eng = c
	return c
}

// configure writes the files of containerd, crictl and CNI.
func (c cri) configure() error {
	var config strings.Builder
	fmt.Fprintf(&config, `version = 2
root = "%[1]s/root"
state = %[2]q
[grpc]
  address = %[3]q
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = %[4]q
`, c.dir, criState, criSocket, runtimes[0].name)
	for _, rt := range runtimes {
		fmt.Fprintf(&config, `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%[1]s]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%[1]s.options]
    BinaryName = %[2]q
`, rt.name, rt.bin)
	}
	network := fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "e2e", "plugins": [
  {"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.199.200.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": %q}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`, criBridge, criState+"/cni")
	err := os.MkdirAll(filepath.Join(c.dir, "cni"), 0o755)
	for name, text := range map[string]string{
		"config.toml":            config.String(),
		"cni/10-bridge.conflist": network,
		"crictl.yaml":            "runtime-endpoint: unix://" + criSocket + "\nimage-endpoint: unix://" + criSocket + "\ntimeout: 120\n",
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644))
	}
	return err
}

// forgetCNI takes back what containerd makes of /run/netns, if it is not there yet.
func (e *env) forgetCNI() {
	e.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/run/netns"))
	e.noErr(err)
	if _, err := os.Stat("/run/netns"); err != nil && len(mounts) == 0 {
		e.Cleanup(func() { e.noErr(sh("umount /run/netns 2>/dev/null || true; rmdir /run/netns 2>/dev/null || true")) })
	}
}

// configFile writes a configuration of CRI, of a pod or a container, and returns its path.
func (c cri) configFile(e *env, name string, config map[string]any) string {
	e.Helper()
	text, err := json.Marshal(config)
	e.noErr(err)
	path := filepath.Join(c.dir, name+".json")
	e.noErr(os.WriteFile(path, text, 0o644))
	return path
}

// A pod of two containers through containerd's CRI, as kubelet drives it.
func TestCRI(t *testing.T) {
	eachRuntime(t, func(e *env) {
		c := e.startCRI()
		logs := filepath.Join(c.dir, "logs")
		podFile := c.configFile(e, "pod", map[string]any{
			"metadata": map[string]any{"name": "pod", "namespace": "default", "uid": "1"}, "hostname": "of-the-pod", "log_directory": logs,
			"port_mappings": []any{map[string]any{"container_port": 80, "host_port": 18080}},
			"dns_config":    map[string]any{"servers": []string{"192.0.2.53"}},
			"linux":         map[string]any{"cgroup_parent": "/" + tag},
		})
		container := func(name, script string, linux map[string]any) string {
			return c.configFile(e, name, map[string]any{
				"metadata": map[string]any{"name": name}, "image": map[string]any{"image": "busybox"}, "log_path": name + ".log", "stdin": true,
				"command": []string{"sh", "-c", script}, "envs": []any{map[string]any{"key": "PATH", "value": "/bin"}}, "linux": linux,
			})
		}
		pod := e.ok(append(append([]string{"runp"}, c.runFlags(e.rt)...), podFile)...)
		removed := false
		e.Cleanup(func() {
			if !removed {
				e.docker("rmp", "--force", pod)
			}
		})
		web := e.ok("create", pod, container("web", `
mkdir /www; echo page >/www/index.html; httpd -p 80 -h /www; echo serving; echo error >&2
while read -r line; do echo "read $line"; done; exec sleep 1000`, map[string]any{"resources": map[string]any{"memory_limit_in_bytes": 64 << 20}}), podFile)
		client := e.ok("create", pod, container("client", "exec sleep 1000", map[string]any{}), podFile)
		e.ok("start", web)
		e.ok("start", client)
		if err := waitFor("the server's log", func() bool { return e.ok("logs", web) == "serving" }); err != nil {
			e.Fatal(err)
		}
		e.wantReport(parseReport(e.ok("exec", client, "sh", "-c", `
echo "page=$(wget -qO- http://127.0.0.1/)"
echo "host=$(hostname)"
echo "nameserver=$(cat /etc/resolv.conf)"
ls /www >/dev/null 2>&1 || echo www=none`)), map[string]string{"page": "page", "host": "of-the-pod", "nameserver": "nameserver 192.0.2.53", "www": "none"})
		r := e.docker("exec", client, "sh", "-c", "exit 3")
		e.wantCode(r, 1)
		e.wantPart("stderr of exec", r.stderr, "exit code 3")
		e.want("stdout of a synchronous exec", strings.TrimSpace(e.ok("exec", "--sync", client, "echo", "sync")), "sync")
		e.want("the pod's port on the host", e.fetch("127.0.0.1:18080"), "page\n")
		forward := e.session("port-forward", pod, "18081:80")
		forward.expect("Forwarding from 127.0.0.1:18081")
		e.want("the forwarded port", e.fetch("127.0.0.1:18081"), "page\n")
		forward.kill()
		attached := e.session("attach", "--stdin", web)
		attached.send("line\n")
		attached.expect("read line\n")
		attached.kill()
		e.wantPart("stats", e.ok("stats", "--output", "json", "--id", web), `"memory"`)
		e.ok("update", "--memory", "100000000", web)
		e.wantPart("limit after update", e.ok("inspect", web), `"limit": 100000000`)

		e.ok("stop", "--timeout", "0", web)
		e.wantPart("state of the one that was killed", e.ok("inspect", "--output", "go-template", "--template", "{{.status.state}} {{.status.exitCode}}", web), "CONTAINER_EXITED 137")
		e.want("exec in the other", e.ok("exec", client, "echo", "alive"), "alive")
		e.ok("rm", web)
		e.ok("stopp", pod)
		e.wantPart("state of the other, at the pod's end", e.ok("inspect", "--output", "go-template", "--template", "{{.status.state}}", client), "CONTAINER_EXITED")
		e.ok("rmp", pod)
		removed = true
		e.want("pods left", e.ok("pods", "--quiet"), "")
	})
}
