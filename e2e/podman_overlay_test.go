package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Overlays of directories of the host, which podman has the runtime mount: volumes that a container changes for itself
// only, and images.
func TestPodmanOverlays(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		dir := e.hostDir()
		lower, upper, work := filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")
		e.noErr(sh(fmt.Sprintf(`cd %s; mkdir lower upper work; echo "of the host" >lower/file; echo >lower/gone; chown -R --reference=. .`, dir)))
		id := e.startReady("ready", "-v", lower+":/fresh:O", "-v", lower+":/kept:O,upperdir="+upper+",workdir="+work,
			"--mount", "type=image,src=localhost/busybox,dst=/image", "--mount", "type=image,src=localhost/busybox,dst=/copy,rw=true",
			"busybox", "sh", "-c", `
				for at in /fresh /kept; do echo more >>$at/file && rm $at/gone && mkdir $at/new || exit; done
				echo more >>/copy/etc/in-image; echo ready; sleep 1000`)
		for _, at := range []string{"/fresh", "/kept"} {
			e.want(at, e.ok("exec", id, "sh", "-c", "ls "+at+"; cat "+at+"/file"), "file\nnew\nof the host\nmore")
		}
		e.want("the host's directory", e.readFile(filepath.Join(lower, "file")), "of the host\n")
		e.want("the upper layer", e.readFile(filepath.Join(upper, "file")), "of the host\nmore\n")
		e.want("the image", e.ok("exec", id, "cat", "/image/etc/in-image", "/copy/etc/in-image"), "from the image\nfrom the image\nmore")
		e.wantPart("touch in the image", e.docker("exec", id, "touch", "/image/new").stderr, "Read-only file system")
		e.ok("rm", "-f", "-t", "0", id)

		if !e.rt.isVM() {
			return // podman build has runc make a cgroup, which not every machine lets it
		}
		defer e.ok("rmi", "--force", "localhost/built")
		e.noErr(os.WriteFile(filepath.Join(dir, "Containerfile"), []byte("FROM localhost/busybox\nRUN cp /v/file /got && echo built >>/v/file\n"), 0o644))
		e.ok("build", "-v", lower+":/v:O", "-t", "localhost/built", dir)
		e.want("what was built", e.runOK("localhost/built", "cat", "/got"), "of the host")
		e.want("the host's directory", e.readFile(filepath.Join(lower, "file")), "of the host\n")
	})
}
