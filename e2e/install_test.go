package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What install writes is what dockerd reads: at its start, and on the signal of a reload.
func TestInstallDocker(t *testing.T) {
	eachVM(t, func(e *env) {
		d := newDaemon("install", 2)
		d.configured = true
		before := "{\n\t\"default-runtime\": \"runc\",\n\t\"log-opts\": { \"max-size\": \"1m\" }\n}\n"
		e.noErr(os.MkdirAll(d.dir, 0o755))
		e.noErr(os.WriteFile(d.configPath(), []byte(before), 0o600))
		h := e.byHand()
		h.root = ""
		install := []string{"install", "--docker", "--config", d.configPath()}
		e.wantPart("dry run", h.must(append(install, "--dry-run")...), "+\t\t\t\"path\": \""+e.rt.bin+"\"\n")
		h.must(append(install, "--default")...)
		e.noErr(d.start())
		e.Cleanup(func() {
			e.d, e.eng = theDaemon, theDaemon
			e.noErr(d.stop())
			e.shOut("ip link del " + d.bridge + "; umount " + d.execRoot + "/netns/* 2>/dev/null || :; rm -r " + d.execRoot + " " + d.dir)
		})
		e.noErr(d.importImage())
		e.d, e.eng = d, d
		host := strings.TrimSpace(e.shOut("uname -r"))
		if guest := e.ok("run", "--rm", "busybox", "uname", "-r"); guest == host {
			e.Errorf("the default runtime is not boxlite: kernel %s", guest)
		}

		e.wantPart("second install", h.must(append(install, "--default")...), "nothing is changed")
		h.must("install", "--docker", "--config", d.configPath(), "--name", "small", "--", "--vcpus", "1")
		e.noErr(d.cmd.Process.Signal(syscall.SIGHUP))
		if err := waitFor("dockerd knows runtime small", func() bool {
			return strings.Contains(e.ok("info", "--format", "{{.Runtimes}}"), "small")
		}); err != nil {
			e.Fatal(err)
		}
		e.want("processors", e.ok("run", "--rm", "--runtime", "small", "busybox", "nproc"), "1")

		for _, name := range []string{"small", "boxlite"} {
			h.must("uninstall", "--docker", "--config", d.configPath(), "--name", name)
		}
		after, err := os.ReadFile(d.configPath())
		e.noErr(err)
		e.want("daemon.json after uninstall", string(after), before)
	})
}

// containerd takes config.toml as it is then, and its plugin for pods has both runtimes.
func TestInstallContainerd(t *testing.T) {
	eachVM(t, func(e *env) {
		dir := e.diskDir()
		config := filepath.Join(dir, "config.toml")
		h := e.byHand()
		h.root = ""
		h.must("install", "--containerd", "--config", config, "--default")
		// The plugin's name and the quotes are those of containerd 1.
		dump := strings.NewReplacer("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "'", `"`).Replace(e.shOut("containerd --config " + config + " config dump"))
		for _, line := range []string{
			`default_runtime_name = "boxlite"`,
			`[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]`,
			`[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.boxlite]`,
			`BinaryName = "` + e.rt.bin + `"`,
		} {
			if !strings.Contains(dump, line) {
				e.Errorf("containerd does not say %s:\n%s", line, dump)
			}
		}
		h.must("uninstall", "--containerd", "--config", config)
		if _, err := os.Stat(config); err == nil {
			e.Error("uninstall leaves a file that install made")
		}
	})
}
