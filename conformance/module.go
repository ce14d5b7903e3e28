package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// A toolModule is a module that names programs of others, by its path from the repository's root.
type toolModule string

const (
	suiteModule toolModule = "conformance/suite"
	criModule   toolModule = "conformance/cri/suite"
)

// built returns a directory of the cache that build has filled, now or for an earlier run. The key of the cache is what
// the programs are built from.
func (m toolModule) built(build func(dir string) error) (string, error) {
	key := sha256.New()
	fmt.Fprintln(key, runtime.Version(), runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(string(m), name))
		if err != nil {
			return "", err
		}
		key.Write(text)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "boxlite", "conformance", hex.EncodeToString(key.Sum(nil)[:10]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fmt.Fprintln(os.Stderr, "building the programs of", m, "into", dir)
	return dir, fill(dir, build)
}

// fill has build fill dir under another name first, so that it is there completely or not at all.
func fill(dir string, build func(dir string) error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(unfinished)
	if err := os.Chmod(unfinished, 0o755); err != nil {
		return err
	}
	if err := build(unfinished); err != nil {
		return err
	}
	err = os.Rename(unfinished, dir)
	if _, statErr := os.Stat(dir); statErr == nil {
		return nil // another run was quicker
	}
	return err
}

// goTool runs the go command in the module. Programs are static: some run in a rootfs without a libc.
func (m toolModule) goTool(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = string(m)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s in %s: %w", args[0], m, err)
	}
	return output, nil
}
