package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dindImage is images/dind, of Debian's default release.
const dindImage = "boxlite/dind"

// dindPhases are the parts of a start, each with the line at which it ends.
var dindPhases = []struct{ what, mark string }{
	{"VM up", "bench: up"},
	{"entry point, dockerd read in", "Starting up"},
	{"containerd", "containerd successfully booted"},
	{"dockerd's stores", "Loading containers: start"},
	{"Loading containers", "Loading containers: done"},
	{"the rest", "API listen on"},
}

// Rows of Docker in Docker, beside those of the phases.
const (
	dindPrefix = "Docker in Docker: "
	dindListen = dindPrefix + "from the start to API listen"
	dindRun    = dindPrefix + "inner docker run, the first"
	dindAgain  = dindPrefix + "inner docker run, the second"
)

// dindScript starts dockerd by the image's entry point and, as soon as it listens, containers inside. Its lines are what the
// figures come from.
const dindScript = `exec 2>&1
echo bench: up
mkfifo /run/bench
dind >/run/bench 2>&1 &
exec 3</run/bench
while read -r line <&3; do echo "$line"; case $line in *'API listen'*) break ;; esac; done
cat <&3 &
docker import /in/busybox.tar busybox >/dev/null
for i in 1 2; do
	echo bench: run
	docker run --rm busybox true
	echo bench: ran
done`

// dind compares Docker in Docker in a container with the same files, dockerd and commands in a bare VM.
func dind(h *host, n repetitions, r *result) error {
	if err := h.importDind(); err != nil {
		return err
	}
	commands, err := boxliteCommands(h, "--kernel", "net")
	if err != nil {
		return err
	}
	for i := range n.dind + 1 { // the first round fills the host's page cache and does not count
		for _, subject := range []struct {
			name string
			run  func(*journal) error
		}{
			{warm, func(j *journal) error { return dindContainer(h, j) }},
			{bareVM, func(j *journal) error { return dindBare(h, commands, j) }},
		} {
			began, j := time.Now(), new(journal)
			if err := subject.run(j); err != nil {
				return fmt.Errorf("%s%s: %w\n%s", dindPrefix, subject.name, err, j)
			}
			if i == 0 {
				continue
			}
			if err := r.addDind(subject.name, began, j); err != nil {
				return fmt.Errorf("%s%s: %w\n%s", dindPrefix, subject.name, err, j)
			}
		}
	}
	return nil
}

// addDind adds the figures of one start.
func (r *result) addDind(name string, began time.Time, j *journal) error {
	var marks []string
	for _, p := range dindPhases {
		marks = append(marks, p.mark)
	}
	marks = append(marks, "bench: run", "bench: ran", "bench: run", "bench: ran")
	times, err := j.times(marks...)
	if err != nil {
		return err
	}
	before := began
	for i, p := range dindPhases {
		r.add(dindPrefix+p.what, name, seconds, times[i].Sub(before).Seconds())
		before = times[i]
	}
	r.add(dindListen, name, seconds, before.Sub(began).Seconds())
	runs := times[len(dindPhases):]
	r.add(dindRun, name, seconds, runs[1].Sub(runs[0]).Seconds())
	r.add(dindAgain, name, seconds, runs[3].Sub(runs[2]).Seconds())
	return nil
}

// importDind gives dockerd the image and makes the directory that its containers see as /in.
func (h *host) importDind() error {
	if err := importImage("dind"); err != nil {
		return err
	}
	if err := os.Mkdir(h.in(), 0o755); err != nil {
		return err
	}
	_, err := output("tar", "-C", h.rootfs(), "-cf", filepath.Join(h.in(), "busybox.tar"), ".")
	return err
}

// importImage gives dockerd an image of images/ as boxlite/NAME.
func importImage(name string) error {
	if _, err := output("images/build.sh", "--import", name); err != nil {
		return fmt.Errorf("%w (make bench-%s runs at the top of the tree)", err, name)
	}
	return nil
}

// imageLayer is the directory of such an image, which has one layer.
func imageLayer(name string) (string, error) {
	return docker("image", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", "boxlite/"+name)
}

// layered mounts an overlay as the directory root of dir, with an image below and directories of its own above. unmount
// removes dir too.
func layered(image, dir string, own ...string) (root string, unmount func() error, err error) {
	for _, sub := range append([]string{"root", "upper", "work"}, own...) {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", nil, err
		}
	}
	root = filepath.Join(dir, "root")
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", image, dir)
	if err := unix.Mount("overlay", root, "overlay", 0, layers); err != nil {
		return "", nil, fmt.Errorf("mount an overlay on the image: %w", err)
	}
	return root, func() error { return errors.Join(unix.Unmount(root, unix.MNT_DETACH), os.RemoveAll(dir)) }, nil
}

func (h *host) in() string { return filepath.Join(h.work, "in") }

// dindContainer is docker run, to its end.
func dindContainer(h *host, j *journal) error {
	cmd := exec.Command("/usr/bin/docker", "run", "--rm", "--runtime", warm, "--cap-add", "ALL", "-v", h.in()+":/in:ro",
		"--entrypoint", "sh", dindImage, "-ec", dindScript)
	cmd.Stdout, cmd.Stderr = j, j
	return cmd.Run()
}

// dindBare is a VM by hand, to its end, whose share is what a container would see: an overlay on the image, and a directory
// for dockerd's files.
func dindBare(h *host, c commands, j *journal) (err error) {
	image, err := imageLayer("dind")
	if err != nil {
		return err
	}
	dir := filepath.Join(h.work, "bare-dind")
	root, unmount, err := layered(image, dir, "upper/in", "upper/etc", "upper/var/lib/docker", "docker")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	for source, target := range map[string]string{h.in(): "in", dir + "/docker": "var/lib/docker"} {
		if err := unix.Mount(source, filepath.Join(root, target), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", source, err)
		}
	}
	order, err := json.Marshal(map[string]any{
		"address": bareAddress, "gateway": serverHost, "command": []string{"sh", "-ec", dindScript},
	})
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"order.json": string(order), "etc/hosts": "127.0.0.1 localhost\n", "etc/resolv.conf": "nameserver " + serverHost + "\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	said, err := runBare(h, c, root, j)
	if err == nil && strings.Contains(said.String(), "load: ") {
		err = errors.New("the bare VM failed")
	}
	return err
}
