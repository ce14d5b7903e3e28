package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// loadModules loads the modules that the initramfs has for a distribution's kernel, in the order of their names, and
// removes them. boxlite's own kernels have none.
func loadModules() error {
	files, err := os.ReadDir(guestproto.ModulesDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(guestproto.ModulesDir, f.Name())
		if err := errors.Join(loadModule(path), os.Remove(path)); err != nil {
			return fmt.Errorf("module %s: %w", f.Name(), err)
		}
	}
	return nil
}

// loadModule loads a module, unless the machine lacks what it drives.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}
