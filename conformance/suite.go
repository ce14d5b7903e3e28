package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

const toolsModule = "github.com/opencontainers/runtime-tools"

// A suite is the built validation suite.
type suite struct {
	dir      string   // holds the programs, and what they look for in their working directory: runtimetest and a rootfs
	programs []string // by name, sorted
}

// buildSuite builds the programs that suite/go.mod names, unless the cache has them. The key of the cache is what they are
// built from.
func buildSuite() (*suite, error) {
	list, err := goTool("list", "tool")
	if err != nil {
		return nil, err
	}
	s := &suite{}
	for line := range strings.Lines(string(list)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), toolsModule+"/validation/"); ok {
			s.programs = append(s.programs, name)
		}
	}
	slices.Sort(s.programs) // go list has no order
	key := sha256.New()
	fmt.Fprintln(key, runtime.Version(), runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(suiteModule, name))
		if err != nil {
			return nil, err
		}
		key.Write(text)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	s.dir = filepath.Join(cache, "boxlite", "conformance", hex.EncodeToString(key.Sum(nil)[:10]))
	if _, err := os.Stat(s.dir); err == nil {
		return s, nil
	}
	fmt.Println("building the suite into", s.dir)
	return s, s.build()
}

// suiteModule is the module of the suite, from the repository's root.
const suiteModule = "conformance/suite"

// build fills s.dir under another name first, so that it is there completely or not at all.
func (s *suite) build() error {
	if err := os.MkdirAll(filepath.Dir(s.dir), 0o755); err != nil {
		return err
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(s.dir), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(unfinished)
	if err := os.Chmod(unfinished, 0o755); err != nil {
		return err
	}
	if _, err := goTool("build", "-trimpath", "-ldflags", "-s -w", "-o", unfinished+"/", "tool"); err != nil {
		return err
	}
	source, err := goTool("list", "-m", "-f", "{{.Dir}}", toolsModule)
	if err != nil {
		return err
	}
	rootfs := "rootfs-" + runtime.GOARCH + ".tar.gz"
	content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(source)), rootfs))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(unfinished, rootfs), content, 0o644); err != nil {
		return err
	}
	err = os.Rename(unfinished, s.dir)
	if _, statErr := os.Stat(s.dir); statErr == nil {
		return nil // another run was quicker
	}
	return err
}

// goTool runs the go command in the suite's module. runtimetest has to be static: it runs in a rootfs without a libc.
func goTool(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = suiteModule
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s in %s: %w", path.Join(args[:1]...), suiteModule, err)
	}
	return output, nil
}
