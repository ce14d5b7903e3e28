package main

import (
	"os"
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
	list, err := suiteModule.goTool("list", "tool")
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
	s.dir, err = suiteModule.built(func(dir string) error {
		if _, err := suiteModule.goTool("build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "tool"); err != nil {
			return err
		}
		source, err := suiteModule.goTool("list", "-m", "-f", "{{.Dir}}", toolsModule)
		if err != nil {
			return err
		}
		rootfs := "rootfs-" + runtime.GOARCH + ".tar.gz"
		content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(source)), rootfs))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, rootfs), content, 0o644)
	})
	return s, err
}
