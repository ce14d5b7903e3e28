package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
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

// Podman reads what install has put into its directory, root's and the user's.
func TestInstallPodman(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		if !e.rt.isVM() {
			t.Skip("about boxlite install")
		}
		conf, err := os.ReadFile(filepath.Join(e.dir, "containers.conf"))
		e.noErr(err)
		etc := filepath.Join(e.dir, ".config/containers")
		if !e.rootless {
			etc = "/etc/containers" // of this run's own mount namespace
			e.noErr(sh("cp -a /etc/containers /run/e2e-containers"))
			e.noErr(unix.Mount("/run/e2e-containers", etc, "", unix.MS_BIND, ""))
			e.Cleanup(func() { e.noErr(sh("umount /etc/containers && rm -r /run/e2e-containers")) })
		}
		asThem := func(name string, args ...string) result {
			e.Helper()
			cmd := exec.Command(name, args...)
			cmd.Dir = "/"
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CONTAINERS_STORAGE_CONF=" + e.dir + "/storage.conf", "HOME=" + e.dir}
			if e.rootless {
				cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+userRunDir, "USER=user")
				asUser(cmd)
			}
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			defer cancel()
			r := finish(ctx, cmd)
			e.wantCode(r, 0)
			return r
		}
		boxlite := filepath.Join(userBinDir, filepath.Base(e.rt.bin))
		asThem(boxlite, "install", "--podman", "--name", "installed", "--default")
		e.noErr(os.WriteFile(filepath.Join(etc, "containers.conf"), conf, 0o644))
		run := append(append([]string{"run", "--rm"}, e.podman.runFlags(e.rt)...), "busybox", "uname", "-r")
		if guest := strings.TrimSpace(asThem("podman", run...).stdout); guest == strings.TrimSpace(e.shOut("uname -r")) {
			e.Errorf("podman's default runtime is not boxlite: kernel %s", guest)
		}
		asThem(boxlite, "uninstall", "--podman", "--name", "installed")
		if left, err := os.ReadDir(filepath.Join(etc, "containers.conf.d")); err != nil || len(left) > 0 {
			e.Errorf("left in containers.conf.d: %v, %v", left, err)
		}
		e.noErr(sh("rm -rf " + e.dir + "/.config"))
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
		dump := e.shOut("containerd --config " + config + " config dump")
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
