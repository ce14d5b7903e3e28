// Package kmod loads the modules that command initramfs has packed for a distribution's kernel.
package kmod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LoadAll loads the modules in the directory, in the order of their names, and removes them. A module whose device the machine
// lacks is left out. Without the directory there is nothing to load.
func LoadAll(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if err := errors.Join(load(path), os.Remove(path)); err != nil {
			return fmt.Errorf("module %s: %w", f.Name(), err)
		}
	}
	return nil
}

func load(path string) error {
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
