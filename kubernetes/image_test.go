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
	// dockerImage is that of ../images/dind: Debian's Docker.
	dockerImage = "localhost/docker:1"
	dockerLayer = "docker.tar"
	// pauseImage is that of a pod's sandbox. Its shell reaps what it is given, as a pause has to for containers that have
	// their processes in common.
	pauseImage = "localhost/pause:1"
)

// writeImages writes the images into a directory, each as docker save does.
func writeImages(dir string) error {
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "probe"), "../e2e/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w: %s", err, out)
	}
	err := script(dir, `
mkdir -p rootfs/bin rootfs/dev rootfs/etc rootfs/proc rootfs/root rootfs/sys rootfs/tmp rootfs/var/run
chmod 1777 rootfs/tmp
cp "$1" rootfs/bin/busybox
cp probe rootfs/bin/probe
for applet in $("$1" --list); do [ $applet = busybox ] || ln rootfs/bin/busybox rootfs/bin/$applet; done
echo 'root:x:0:0:root:/root:/bin/sh' >rootfs/etc/passwd
echo 'root:x:0:' >rootfs/etc/group
tar -C rootfs --owner 0 --group 0 -cf box.tar .`, busybox)
	if err != nil {
		return fmt.Errorf("make the root file system: %w", err)
	}
	return errors.Join(
		writeImage(dir, image, "box.tar", map[string]any{"Cmd": []string{"sh"}, "Env": []string{"PATH=/bin"}}),
		writeImage(dir, pauseImage, "box.tar", map[string]any{"Cmd": []string{"sh", "-c", "trap : TERM INT; tail -f /dev/null & wait"}, "Env": []string{"PATH=/bin"}}),
	)
}

// writeImage writes an image of one layer, which is in the directory too.
func writeImage(dir, name, layer string, config map[string]any) error {
	digest, err := digestOf(filepath.Join(dir, layer))
	if err != nil {
		return err
	}
	return errors.Join(
		writeJSON(filepath.Join(dir, "config.json"), map[string]any{
			"architecture": runtime.GOARCH, "os": "linux", "config": config, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest}},
		}),
		writeJSON(filepath.Join(dir, "manifest.json"), []map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{layer}}}),
		script(dir, `tar --dereference -cf "$1" manifest.json config.json "$2"`, archiveOf(name), layer),
	)
}

// linkDocker builds the layer of dockerImage, if the cache has none, and links it into a directory.
func linkDocker(dir string) error {
	out, err := exec.Command("../images/build.sh", "dind").Output()
	if err != nil {
		return fmt.Errorf("build the image of Docker: %w", err)
	}
	words := strings.Fields(string(out))
	return os.Symlink(words[len(words)-1], filepath.Join(dir, dockerLayer))
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
