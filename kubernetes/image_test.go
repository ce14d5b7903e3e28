package kubernetes

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	busybox = "/usr/bin/busybox"
	// image has busybox, and e2e/probe for what a shell cannot do.
	image = "localhost/box:1"
	// pauseImage is that of a pod's sandbox. Its shell reaps what it is given, as a pause has to for containers that have
	// their processes in common.
	pauseImage = "localhost/pause:1"
	// dindImage has a dockerd (../images).
	dindImage = "localhost/dind:1"
)

// writeImages writes the images into a directory, each as docker save does.
func writeImages(dir string) error {
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "probe"), "../e2e/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w: %s", err, out)
	}
	dind, err := exec.Command("../images/build.sh", "dind").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the image dind: %w: %s", err, dind)
	}
	words := strings.Fields(string(dind)) // the last one is the root file system's archive
	if err := os.Symlink(words[len(words)-1], filepath.Join(dir, "dind.tar")); err != nil {
		return err
	}
	err = script(dir, `
mkdir -p rootfs/bin rootfs/dev rootfs/etc rootfs/proc rootfs/root rootfs/sys rootfs/tmp rootfs/var/run
chmod 1777 rootfs/tmp
cp "$1" rootfs/bin/busybox
cp probe rootfs/bin/probe
for applet in $("$1" --list); do [ $applet = busybox ] || ln rootfs/bin/busybox rootfs/bin/$applet; done
echo 'root:x:0:0:root:/root:/bin/sh' >rootfs/etc/passwd
echo 'root:x:0:' >rootfs/etc/group
tar -C rootfs --owner 0 --group 0 -cf box.tar .`, busybox)
	if err != nil {
		return fmt.Errorf("make the image of busybox: %w", err)
	}
	for _, img := range []struct {
		name, layer string
		config      map[string]any
	}{
		{image, "box.tar", map[string]any{"Cmd": []string{"sh"}, "Env": []string{"PATH=/bin"}}},
		{pauseImage, "box.tar", map[string]any{"Cmd": []string{"sh", "-c", "trap : TERM INT; tail -f /dev/null & wait"}, "Env": []string{"PATH=/bin"}}},
		{dindImage, "dind.tar", map[string]any{
			"Entrypoint": []string{"dind"}, "Env": []string{"PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"Volumes": map[string]any{"/var/lib/docker": struct{}{}},
		}},
	} {
		digest, err := digestOf(filepath.Join(dir, img.layer))
		if err != nil {
			return err
		}
		err = errors.Join(
			writeJSON(filepath.Join(dir, "config.json"), map[string]any{
				"architecture": runtime.GOARCH, "os": "linux", "config": img.config,
				"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest}},
			}),
			writeJSON(filepath.Join(dir, "manifest.json"), []map[string]any{{"Config": "config.json", "RepoTags": []string{img.name}, "Layers": []string{img.layer}}}),
			script(dir, `tar -chf "$1" manifest.json config.json "$2"`, archiveOf(img.name), img.layer),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// archiveOf is the name of an image's archive. To tar a name with a colon is a host's.
func archiveOf(name string) string {
	return strings.ReplaceAll(filepath.Base(name), ":", "-") + ".image"
}

// script runs a shell script in a directory.
func script(dir, text string, args ...string) error {
	cmd := exec.Command("sh", append([]string{"-ec", text, "sh"}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func digestOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

func writeJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
