package main

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
)

// Where dockerd in a container keeps its files.
const (
	onVolume  = "volume"
	onScratch = "scratch disk"
)

// dindPlaces are these in the order in which they take turns, each with a directory.
var dindPlaces = []struct{ name, dir string }{{onVolume, "/volume"}, {onScratch, "/scratch"}, {onScratch, "/scratch"}, {onVolume, "/volume"}}

// Shape of what the images inside are made of.
const (
	dindBigMiB       = 200
	dindSmallFiles   = 5000
	dindContextFiles = 500
)

// dindOperations are what dockerd does with files, in this order; each leaves the next one what it needs.
var dindOperations = []struct{ what, command string }{
	{"load a file of 200 MiB", "docker load -q -i /in/big.tar"},
	{"load 5,000 files of 4 KiB", "docker load -q -i /in/small.tar"},
	{"build, 500 files copied", "docker build -q -t built /in/context"},
	{"remove the images", "docker rmi -f built big small"},
}

// dindFilesScript runs the operations by a dockerd in the directory.
func dindFilesScript(dir string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `rm -f /run/bench && mkfifo /run/bench
dind --data-root %s >/run/bench 2>&1 &
dockerd=$!
exec 3</run/bench
while read -r line <&3; do case $line in *'API listen'*) break ;; esac; done
cat <&3 &
docker import /in/busybox.tar busybox >/dev/null
`, dir)
	for _, op := range dindOperations {
		fmt.Fprintf(&b, "echo bench: begin\n%s\necho bench: end\n", op.command)
	}
	b.WriteString("docker image prune -af >/dev/null\nkill $dockerd && wait $dockerd || true\n")
	return b.String()
}

// dindFiles compares the places, in one container.
func dindFiles(h *host, n repetitions, r *result) error {
	if err := h.makeArchives(); err != nil {
		return err
	}
	var script strings.Builder
	script.WriteString("exec 2>&1\n")
	for range n.dindFiles {
		for _, p := range dindPlaces {
			script.WriteString(dindFilesScript(p.dir))
		}
	}
	j := new(journal)
	cmd := exec.Command("/usr/bin/docker", "run", "--rm", "--runtime", withScratch, "--cap-add", "ALL", "-v", h.in()+":/in:ro", "-v", "/volume",
		"--memory", "2g", "--entrypoint", "sh", dindImage, "-ec", script.String())
	cmd.Stdout, cmd.Stderr = j, j
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("files of %s: %w\n%s", dindImage, err, j)
	}
	var marks []string
	for range n.dindFiles * len(dindPlaces) * len(dindOperations) {
		marks = append(marks, "bench: begin", "bench: end")
	}
	times, err := j.times(marks...)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, j)
	}
	for range n.dindFiles {
		for _, p := range dindPlaces {
			for _, op := range dindOperations {
				r.add(dindPrefix+op.what, p.name, seconds, times[1].Sub(times[0]).Seconds())
				times = times[2:]
			}
		}
	}
	return nil
}

// makeArchives makes what is loaded and built.
func (h *host) makeArchives() error {
	noise := rand.NewChaCha8([32]byte{}) // as nothing can compress it
	for _, a := range []struct {
		name  string
		files int
		bytes int64
	}{{"big", 1, dindBigMiB * mibBytes}, {"small", dindSmallFiles, 4096}} {
		if err := imageArchive(h.in(), a.name, a.files, a.bytes, noise); err != nil {
			return err
		}
	}
	context := filepath.Join(h.in(), "context")
	if err := os.MkdirAll(filepath.Join(context, "files"), 0o755); err != nil {
		return err
	}
	const stages = "FROM busybox AS first\nCOPY files /files\nRUN touch /made\nFROM busybox\nCOPY --from=first /files /made /copied/\n"
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(stages), 0o644); err != nil {
		return err
	}
	text := make([]byte, 4096)
	for i := range dindContextFiles {
		if err := os.WriteFile(filepath.Join(context, "files", fmt.Sprint(i)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// imageArchive writes what docker load takes, as dir/NAME.tar: an image of one layer.
func imageArchive(dir, name string, files int, size int64, content io.Reader) (err error) {
	layer := filepath.Join(dir, name+".layer")
	file, err := os.Create(layer)
	if err != nil {
		return err
	}
	defer os.Remove(layer)
	defer file.Close()
	sum := sha256.New()
	w := tar.NewWriter(io.MultiWriter(file, sum))
	for i := range files {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/%d/%d", name, i/filesPerDir, i), Mode: 0o644, Size: size}); err != nil {
			return err
		}
		if _, err := io.CopyN(w, content, size); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sum.Sum(nil))}},
	})
	if err != nil {
		return err
	}
	manifest := fmt.Appendf(nil, `[{"Config":"config.json","RepoTags":["%s:latest"],"Layers":["layer.tar"]}]`, name)
	length, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	archive, err := os.Create(filepath.Join(dir, name+".tar"))
	if err != nil {
		return err
	}
	defer archive.Close()
	w = tar.NewWriter(archive)
	for _, part := range []struct {
		name    string
		size    int64
		content io.Reader
	}{
		{"layer.tar", length, io.NewSectionReader(file, 0, length)},
		{"config.json", int64(len(config)), bytes.NewReader(config)},
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
	} {
		if err := w.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: part.size}); err != nil {
			return err
		}
		if _, err := io.Copy(w, part.content); err != nil {
			return err
		}
	}
	return w.Close()
}
