package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const busyboxPath = "/bin/busybox"

// buildRootfs makes the root file system of every container: busybox with its applets, the probe, two users, and files
// that cases look at.
func buildRootfs(dir string) error {
	for _, d := range []string{"bin", "etc", "root", "tmp", "home/user", "proc", "sys", "dev", "data"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := sh(fmt.Sprintf("cp %s %s/bin/busybox", busyboxPath, dir)); err != nil {
		return err
	}
	applets, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			return err
		}
	}
	for name, file := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"etc/passwd":         {"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001:user:/home/user:/bin/sh\n", 0o644},
		"etc/group":          {"root:x:0:\nstaff:x:1001:\nextra:x:1002:user\n", 0o644},
		"etc/not-executable": {"#!/bin/sh\n", 0o644},
		"bin/bad-format":     {"neither ELF nor script\n", 0o755},
		"etc/in-image":       {"from the image\n", 0o644},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(file.text), file.mode); err != nil {
			return err
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "bin/probe"), "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w: %s", err, out)
	}
	return nil
}
