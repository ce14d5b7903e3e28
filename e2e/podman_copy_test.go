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
