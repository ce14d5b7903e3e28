package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// pauseImage is that of a pod's sandbox.
const pauseImage = "localhost/pause:1"

// An image is one that critest would pull, made of busybox and of cri/standin here. Its name is critest's.
type image struct {
	name string
	cmd  []string
	user string
	// standIns are names of cri/standin in /bin, in the place of busybox's.
	standIns []string
	setuid   bool // of the stand-ins
	// passwd and group are lines more than busybox's image has.
	passwd, group string
	// bare is one without /proc and /sys.
	bare bool
}

var criImages = []image{
	// The shell reaps what it is given, as a pause has to for containers that have their processes in common.
	{name: pauseImage, cmd: []string{"sh", "-c", "trap : TERM INT; tail -f /dev/null & wait"}},
	{name: "registry.k8s.io/e2e-test-images/busybox:1.29-2", cmd: []string{"sh"}, standIns: []string{"pgrep", "ipcs"}},
	{name: "registry.k8s.io/e2e-test-images/nginx:1.14-2", cmd: []string{"nginx", "80", "master process"}, standIns: []string{"nginx"}},
	{name: "registry.k8s.io/e2e-test-images/httpd:2.4.39-4", cmd: []string{"httpd", "80"}, standIns: []string{"httpd"}},
	{name: "registry.k8s.io/e2e-test-images/nonewprivs:1.3", cmd: []string{"nnp"}, standIns: []string{"nnp"}, setuid: true},
	{name: "gcr.io/k8s-staging-cri-tools/hostnet-nginx-amd64:latest", cmd: []string{"nginx", "12003", "master process"}, standIns: []string{"nginx"}},
	{
		name: "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest", cmd: []string{"sh"}, user: "1000",
		passwd: "default-user:x:1000:1000::/home:/bin/sh\n", group: "group-defined-in-image:x:50000:default-user\n",
	},
}

// writeImages writes the images to an archive as docker save does.
func writeImages(path string) error {
	parts, err := imageParts()
	if err != nil {
		return err
	}
	type manifest struct {
		Config           string
		RepoTags, Layers []string
	}
	var manifests []manifest
	archive := newTarball()
	for i, img := range criImages {
		layer, err := img.layer(parts)
		if err != nil {
			return err
		}
		digest := sha256.Sum256(layer)
		config, err := json.Marshal(map[string]any{
			"architecture": runtime.GOARCH, "os": "linux",
			"config": map[string]any{"Cmd": img.cmd, "User": img.user, "Env": []string{"PATH=/bin"}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(digest[:])}},
		})
		if err != nil {
			return err
		}
		m := manifest{fmt.Sprint(i, ".json"), []string{img.name}, []string{fmt.Sprint(i, ".tar")}}
		manifests = append(manifests, m)
		archive.file(m.Config, 0o644, config)
		archive.file(m.Layers[0], 0o644, layer)
	}
	text, err := json.Marshal(manifests)
	if err != nil {
		return err
	}
	archive.file("manifest.json", 0o644, text)
	content, err := archive.end()
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}

// parts are what all images are made of.
type parts struct {
	busybox, standIn []byte
	applets          []string
}

func imageParts() (p parts, err error) {
	const path = "/usr/bin/busybox"
	if p.busybox, err = os.ReadFile(path); err != nil {
		return p, fmt.Errorf("%w (Debian: apt-get install busybox-static)", err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return p, err
	}
	p.applets = strings.Fields(string(applets))
	dir, err := os.MkdirTemp("", "boxlite-standin-")
	if err != nil {
		return p, err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-o", dir, "./conformance/cri/standin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return p, fmt.Errorf("build the stand-in: %w: %s", err, out)
	}
	p.standIn, err = os.ReadFile(filepath.Join(dir, "standin"))
	return p, err
}

// layer is the image's only one. The applets are hard links, as critest masks one of them and not what it would link to.
func (img image) layer(p parts) ([]byte, error) {
	t := newTarball()
	for _, dir := range []string{"bin", "dev", "etc", "home", "proc", "root", "sys", "var", "var/run"} {
		if img.bare && (dir == "proc" || dir == "sys") {
			continue
		}
		t.add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, nil)
	}
	t.add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	t.file("bin/busybox", 0o755, p.busybox)
	for _, applet := range p.applets {
		if applet != "busybox" && !slices.Contains(img.standIns, applet) {
			t.add(tar.Header{Typeflag: tar.TypeLink, Name: "bin/" + applet, Linkname: "bin/busybox", Mode: 0o755}, nil)
		}
	}
	mode := int64(0o755)
	if img.setuid {
		mode |= 0o4000
	}
	for _, name := range img.standIns {
		t.file("bin/"+name, mode, p.standIn)
	}
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"+img.passwd))
	t.file("etc/group", 0o644, []byte("root:x:0:\nnobody:x:65534:\n"+img.group))
	return t.end()
}

// A tarball is a tar archive in memory.
type tarball struct {
	buf bytes.Buffer
	w   *tar.Writer
	err error // the first
}

func newTarball() *tarball {
	t := &tarball{}
	t.w = tar.NewWriter(&t.buf)
	return t
}

func (t *tarball) file(name string, mode int64, content []byte) {
	t.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content)
}

func (t *tarball) add(h tar.Header, content []byte) {
	if t.err == nil {
		t.err = t.w.WriteHeader(&h)
	}
	if t.err == nil {
		_, t.err = t.w.Write(content)
	}
}

// end returns the archive.
func (t *tarball) end() ([]byte, error) {
	err := errors.Join(t.err, t.w.Close())
	return t.buf.Bytes(), err
}
