package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dindSuite is the Debian release whose Docker runs inside, "" for the default.
var dindSuite = os.Getenv("E2E_DIND_SUITE")

// wholeImage has the daemon import an image of ../images, of a Debian release or, with "", of the default one, which make
// images has built. It returns its name.
func (e *env) wholeImage(name, suite string) string {
	e.Helper()
	tag, args := "boxlite/"+name, []string{"--import", name}
	if suite != "" {
		tag, args = tag+":"+suite, append([]string{"--suite", suite}, args...)
	}
	if e.docker("image", "inspect", tag).code == 0 {
		return tag
	}
	cmd := exec.Command("../images/build.sh", args...)
	cmd.Env = append(e.d.command(e.Context()).Env, "PATH="+filepath.Dir(dockerBin)+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		e.Fatalf("%v: %s\n(make images builds what is missing)", err, out)
	}
	return tag
}

// patient gives the case's commands more time: a daemon and its containers in an emulated machine share its processors.
func (e *env) patient() {
	before := deadline
	deadline = 8 * time.Minute
	e.Cleanup(func() { deadline = before })
}

// dind starts a container with dockerd in it and returns its id when that answers.
func (e *env) dind(args ...string) string {
	e.Helper()
	return e.startReady("API listen on /var/run/docker.sock", append([]string{"-v", filepath.Join(workDir, "rootfs") + ":/busybox:ro"}, args...)...)
}

// inside runs a script in the container, which must succeed and prints lines NAME=VALUE.
func (e *env) inside(id, script string) map[string]string {
	e.Helper()
	r := e.docker("exec", id, "bash", "-ec", script)
	e.wantCode(r, 0)
	return parseReport(r.stdout)
}

// A dockerd in a container, and everything that people do with one.
func TestDockerInDocker(t *testing.T) {
	eachVM(t, func(e *env) {
		e.patient()
		image := e.wholeImage("dind", dindSuite)
		dir := e.diskDir()
		sum := e.bigArchive(filepath.Join(dir, "big.tar"))
		port := e.echoServer(e.d.gateway)

		id := e.dind("-v", "dind:/var/lib/docker", "-v", dir+":/in:ro", "-p", "18090:8080", "--cap-add", "ALL", image)
		e.wantPart("log", e.docker("logs", id).stderr, "Daemon has completed initialization")
		got := e.inside(id, `
docker version --format 'versions={{.Client.Version}} {{.Server.Version}}'
docker info --format 'driver={{.Driver}}
cgroup={{.CgroupVersion}}
security={{.SecurityOptions}}'
tar -C /busybox -c . | docker import - busybox >/dev/null`)
		if v := strings.Fields(got["versions"]); len(v) != 2 {
			e.Errorf("docker version inside = %q, want the client's and the server's", got["versions"])
		}
		security := strings.Replace(got["security"], "=builtin", "=default", 1) // as newer ones say
		e.want("security options", security, "[name=seccomp,profile=default name=cgroupns]")
		e.wantReport(got, map[string]string{"driver": "overlay2", "cgroup": "2"})

		// To the outside: the outer bridge's gateway is the host.
		got = e.inside(id, fmt.Sprintf(`
docker run --rm busybox sh -c 'ping -c 1 -W 10 %[1]s >/dev/null && echo ping=ok; echo "tcp=$(probe dial tcp %[1]s:%[2]s hello)"'
docker run --rm --memory 16m busybox tail /dev/zero || echo "memory=$?"`, e.d.gateway, port))
		e.wantReport(got, map[string]string{"ping": "ok", "tcp": "hello", "memory": "137"})

		// To the inside: from the outer container, and from the host through two published ports.
		e.inside(id, `docker run -d -p 8080:7 --name server busybox probe serve tcp :7 >/dev/null
until docker logs server | grep -q listening; do sleep 0.1; done`)
		e.want("answer to the outer container", e.exec(id, "/busybox/bin/probe", "dial", "tcp", "127.0.0.1:8080", "one hop"), "one hop")
		answer, err := dialEcho("127.0.0.1:18090", "two hops")
		if err != nil || answer != "two hops" {
			e.Errorf("answer to the host = %q, %v", answer, err)
		}

		got = e.inside(id, `
docker network create own >/dev/null
docker run -d --network own --name named busybox probe serve tcp :7 >/dev/null
docker run --rm --network own busybox sh -c 'echo "name=$(probe dial tcp named:7 found)"'`)
		e.wantReport(got, map[string]string{"name": "found"})

		got = e.inside(id, `
mkdir /context && cd /context
cat >Dockerfile <<END
FROM busybox AS first
RUN echo of the first stage >/made && rm /etc/in-image
FROM busybox
COPY --from=first /made /final
RUN ln /final /linked && chmod 4711 /linked
CMD ["cat", "/final"]
END
docker build -q -t two-stages . >/dev/null
echo "built=$(docker run --rm two-stages)"`)
		e.wantReport(got, map[string]string{"built": "of the first stage"})

		got = e.inside(id, `
docker load -q -i /in/big.tar
echo "sum=$(docker run --rm -v /busybox:/busybox:ro --entrypoint /busybox/bin/busybox big sha256sum /big | cut -d ' ' -f 1)"`)
		e.wantReport(got, map[string]string{"sum": sum})

		// Images are in the named volume, which outlives the container.
		e.ok("rm", "-f", id)
		id = e.dind("-v", "dind:/var/lib/docker", "--cap-add", "ALL", image)
		e.wantReport(e.inside(id, `echo "built=$(docker run --rm two-stages)"`), map[string]string{"built": "of the first stage"})
	})
}

// Where Docker inside keeps its files: an anonymous volume, which the image declares, or the container's own root.
func TestDockerInDockerFiles(t *testing.T) {
	eachVM(t, func(e *env) {
		e.patient()
		id := e.dind("--privileged", e.wholeImage("dind", dindSuite))
		const try = `
echo "driver=$(docker info --format '{{.Driver}}')"
tar -C /busybox -c . | docker import - busybox >/dev/null
echo "deleted=$(docker run --rm busybox sh -c 'rm -r /bin/probe /etc/in-image && mkdir /home/user/new && mv /home/user /home/moved && ls /home && ! ls /etc/in-image')"`
		want := map[string]string{"driver": "overlay2", "deleted": "moved"}
		got := e.inside(id, `echo "mount=$(findmnt -no FSTYPE /var/lib/docker)"`+try)
		e.wantReport(got, want)
		e.wantReport(got, map[string]string{"mount": "virtiofs"})
		got = e.inside(id, `
ip link add own0 type bridge && ip addr add 172.31.0.1/24 dev own0 && ip link set own0 up
dind --data-root /own --exec-root /run/own --pidfile /run/own.pid -H unix:///run/own.sock --bridge own0 >/tmp/own.log 2>&1 &
export DOCKER_HOST=unix:///run/own.sock
until grep -q 'API listen' /tmp/own.log; do kill -0 $! || { cat /tmp/own.log; exit 1; }; sleep 0.2; done`+try)
		e.wantReport(got, want)
	})
}

// bigArchive writes what docker load takes: an image "big" with a file /big of 200 MiB that nothing can compress. It
// returns the file's SHA-256.
func (e *env) bigArchive(path string) string {
	e.Helper()
	const size = 200 << 20
	f, err := os.Create(path)
	e.noErr(err)
	defer f.Close()
	archive := tar.NewWriter(f)
	add := func(name string, size int64, content io.Reader) {
		e.noErr(archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}))
		_, err := io.Copy(archive, content)
		e.noErr(err)
	}

	fileSum, layerSum := sha256.New(), sha256.New()
	var layerHead bytes.Buffer
	e.noErr(tar.NewWriter(&layerHead).WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: size})) // the content follows
	content := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), fileSum)
	layer := io.MultiReader(&layerHead, content, bytes.NewReader(make([]byte, 1024))) // two empty blocks end an archive
	add("layer.tar", int64(layerHead.Len())+size+1024, io.TeeReader(layer, layerSum))

	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", layerSum.Sum(nil))}},
	})
	e.noErr(err)
	add("config.json", int64(len(config)), bytes.NewReader(config))
	manifest := `[{"Config":"config.json","RepoTags":["big:latest"],"Layers":["layer.tar"]}]`
	add("manifest.json", int64(len(manifest)), strings.NewReader(manifest))
	e.noErr(archive.Close())
	return fmt.Sprintf("%x", fileSum.Sum(nil))
}
