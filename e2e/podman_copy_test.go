package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// podman cp walks a path of the container's in the mount namespace of its process.
func TestPodmanCopyStaysInTheContainer(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		if !e.rt.isVM() {
			return // what runc has open is its own matter
		}
		const name = "bxsecret"
		dir := e.hostDir()
		e.noErr(os.WriteFile("/run/"+name, []byte("of the host"), 0o644))
		defer os.Remove("/run/" + name)
		e.start("--name", "copy", "busybox", "sh", "-c", "mkdir /d; i=0; while [ $i -lt 40 ]; do ln -s /proc/1/fd/$i/../.. /d/f$i; ln -s /proc/$i/root /d/r$i; i=$((i+1)); done; touch /made; sleep 1000")
		e.noErr(waitFor("the links", func() bool { return e.docker("exec", "copy", "test", "-e", "/made").code == 0 }))
		var tried []string
		for i := 5; i < 25; i++ { // where the monitor's directories were
			tried = append(tried, fmt.Sprintf("/d/f%d/%s", i, name), fmt.Sprintf("/d/f%d/run/%s", i, name))
		}
		for i := range 8 {
			tried = append(tried, fmt.Sprintf("/d/r%d/run/%s", i, name))
		}
		for _, from := range tried {
			to := filepath.Join(dir, "copied")
			e.docker("cp", "copy:"+from, to)
			if text, err := os.ReadFile(to); err == nil {
				e.Errorf("podman cp of %s gives %q", from, text)
				e.noErr(os.Remove(to))
			}
		}
	})
}

// A tmpfs of a running container is in the VM, where podman cp does not reach. It says so, and does not copy below it.
func TestPodmanCopyToTmpfs(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		file := filepath.Join(e.hostDir(), "file")
		e.noErr(os.WriteFile(file, []byte("copied\n"), 0o644))
		e.startReady("up", "--name", "copy", "--tmpfs", "/tmp", "-v", filepath.Dir(file)+":/tmp/volume", "busybox", "sh", "-c", "touch /tmp/own; echo up; sleep 1000")
		e.ok("cp", file, "copy:/root")
		e.want("in the root file system", e.exec("copy", "cat", "/root/file"), "copied")
		e.ok("cp", file, "copy:/tmp/volume/again")
		e.want("in a volume below the tmpfs", e.exec("copy", "cat", "/tmp/volume/again"), "copied")
		r := e.docker("cp", file, "copy:/tmp")
		if !e.rt.isVM() {
			e.wantCode(r, 0)
			return
		}
		e.wantCode(r, 125)
		e.wantPart("stderr", r.stderr, "read-only file system")
		e.want("in the tmpfs", e.exec("copy", "sh", "-c", "cd /tmp && echo *"), "own volume")
	})
}
