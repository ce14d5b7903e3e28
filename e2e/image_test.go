package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCopyDiffCommit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		e.noErr(os.WriteFile(filepath.Join(dir, "in"), []byte("copied in\n"), 0o640))
		id := e.start("-v", dir+":/mounted", "busybox", "sh", "-c", "echo made >/made; rm /etc/in-image; echo 'x:x' >>/etc/passwd; echo ready; sleep 1000")
		if err := waitFor("the container's writes", func() bool { return strings.Contains(e.ok("logs", id), "ready") }); err != nil {
			e.Fatal(err)
		}

		// Into and out of a running container, its volumes included.
		e.ok("cp", filepath.Join(dir, "in"), id+":/root/in")
		e.want("file copied in", e.exec(id, "sh", "-c", "cat /root/in; stat -c %a /root/in"), "copied in\n640")
		e.ok("cp", id+":/made", filepath.Join(dir, "out"))
		text, err := os.ReadFile(filepath.Join(dir, "out"))
		e.noErr(err)
		e.want("file copied out", string(text), "made\n")
		e.ok("cp", filepath.Join(dir, "in"), id+":/mounted/through")
		e.want("file copied into a volume", e.exec(id, "cat", "/mounted/through"), "copied in")

		diff := strings.Split(e.ok("diff", id), "\n")
		for _, want := range []string{"A /made", "D /etc/in-image", "C /etc/passwd", "A /root/in", "A /mounted"} {
			if !slices.Contains(diff, want) {
				e.Errorf("diff = %q, want %q in it", diff, want)
			}
		}
		for _, line := range diff {
			for _, inner := range []string{"/proc/", "/sys/", "/dev/pts", "/dev/shm", "/mounted/"} {
				if strings.Contains(line, inner) {
					e.Errorf("diff has %q, which is a mount's", line)
				}
			}
		}

		e.ok("commit", "--change", `CMD ["cat", "/made"]`, id, "committed")
		e.Cleanup(func() { e.ok("rmi", "committed") })
		e.want("container of the committed image", e.runOK("committed"), "made")

		e.ok("kill", id)
		e.ok("wait", id)
		e.ok("cp", id+":/root/in", filepath.Join(dir, "stopped"))
		export := e.ok("export", id)
		if names := tarNames(e, export); !slices.Contains(names, "made") || slices.Contains(names, "etc/in-image") {
			e.Errorf("export of %d files, want made in it and etc/in-image not", len(names))
		}
		if e.d.major() >= 26 { // whose export of a stopped container leaves its root mounted
			e.shOut("umount " + e.inspect(id, ".GraphDriver.Data.MergedDir"))
		}
		e.ok("rm", id)
	})
}

func tarNames(e *env, text string) []string {
	var names []string
	for r := tar.NewReader(bytes.NewReader([]byte(text))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		e.noErr(err)
		names = append(names, h.Name)
	}
}

const dockerfile = `FROM busybox
ARG WHO=nobody
RUN echo "built by $WHO on $(uname -r)" >/built
RUN mkdir -p /deep/er && cp /built /deep/er/copy && chown 7:8 /deep/er/copy && ln -s /built /link
COPY file /copied
USER 1000
WORKDIR /home/user
RUN id -u >/tmp/id && pwd >>/tmp/id
CMD ["sh", "-c", "cat /link /deep/er/copy /copied /tmp/id; stat -c %u:%g /deep/er/copy"]
`

// The RUN steps of a build use the daemon's default runtime, and with BuildKit the runc of dockerd's PATH.
func TestBuild(t *testing.T) {
	eachRuntime(t, func(e *env) {
		d := newDaemon("build-"+e.rt.name, 2)
		d.defaultRuntime = e.rt.name
		// BuildKit takes the runc of dockerd's PATH; later dockerds can be told another name in a variable.
		bin := e.diskDir()
		e.noErr(os.Symlink(e.rt.bin, filepath.Join(bin, "runc")))
		d.env = []string{"DOCKER_BUILDKIT_RUNC_COMMAND=" + e.rt.bin, "PATH=" + bin + ":" + os.Getenv("PATH")}
		e.noErr(d.start())
		e.Cleanup(func() {
			e.d = theDaemon
			// BuildKit takes its networks down behind the answer; a daemon that stops meanwhile leaves them.
			if err := waitFor("the build's links go", func() bool { return e.shOut("ip -o link show master "+d.bridge) == "" }); err != nil {
				e.Error(err)
			}
			e.noErr(d.stop())
			// The cgroup is that of BuildKit's containers; it stays in every daemon that built.
			e.shOut("ip link del " + d.bridge + "; umount " + d.execRoot + "/netns/* 2>/dev/null || :; rm -r " + d.execRoot + " " + d.dir +
				"; rmdir /sys/fs/cgroup/*/" + tag + "/buildkit")
		})
		e.noErr(d.importImage())
		e.d = d
		dir := filepath.Join(d.dir, "context")
		e.noErr(os.Mkdir(dir, 0o755))
		e.noErr(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644))
		e.noErr(os.WriteFile(filepath.Join(dir, "file"), []byte("of the context\n"), 0o644))
		kernel := e.ok("run", "--rm", "busybox", "uname", "-r") // of the default runtime
		for _, buildkit := range []string{"0", "1"} {
			e.Setenv("DOCKER_BUILDKIT", buildkit)
			e.ok("build", "--no-cache", "--build-arg", "WHO=boxlite", "-t", "built", dir)
			line := "built by boxlite on " + kernel + "\n"
			e.want("built image, DOCKER_BUILDKIT="+buildkit, e.ok("run", "--rm", "built"), line+line+"of the context\n1000\n/home/user\n7:8")

			r := e.dockerIn(strings.NewReader("FROM busybox\nRUN echo before; exit 9\n"), "build", "--no-cache", "-")
			if r.code == 0 || !strings.Contains(r.stdout+r.stderr, "returned a non-zero code: 9") && !strings.Contains(r.stderr, "exit code: 9") {
				e.Errorf("failing step, DOCKER_BUILDKIT=%s: %s", buildkit, r)
			}
		}
	})
}
