package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Podman reads what install has put into its directory, root's and the user's.
func TestInstallPodman(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		if !e.rt.isVM() {
			e.Skip("about boxlite install")
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
