package engineconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rogpeppe/go-internal/diff"
)

// Change is what becomes of a file.
type Change struct {
	Path string // of the file itself, not of a link to it
	Old  []byte // nil if there is no such file
	New  []byte // nil if there shall be none

	name     string
	keeps    bool // Old goes to Backup
	restores bool // Backup is where New came from, and goes
}

// readChange is the change that leaves file as it is, for a runtime of that name. A
// link is followed, so that what it points to is changed, and not the link replaced.
func readChange(file, name string) (Change, error) {
	path, err := filepath.EvalSymlinks(file)
	if errors.Is(err, fs.ErrNotExist) {
		path, err = filepath.Abs(file)
		return Change{Path: path, name: name}, err
	}
	if err != nil {
		return Change{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return Change{}, err
	}
	old, err := os.ReadFile(path)
	if old == nil {
		old = []byte{}
	}
	return Change{Path: path, Old: old, New: old, name: name}, err
}

// Empty says that there is nothing to do.
func (c Change) Empty() bool { return (c.Old == nil) == (c.New == nil) && bytes.Equal(c.Old, c.New) }

// Backup is where the file is kept as it was without the runtime.
func (c Change) Backup() string { return c.Path + ".before-" + c.name }

// Keeps says that Apply makes the backup.
func (c Change) Keeps() bool { return c.keeps && !c.Empty() }

// Diff is the change in the form of diff -u, empty if it is.
func (c Change) Diff() []byte {
	from, to := c.Path, c.Path
	if c.Old == nil {
		from = "/dev/null"
	}
	if c.New == nil {
		to = "/dev/null"
	}
	d := diff.Diff(from, c.Old, to, c.New)
	_, d, _ = bytes.Cut(d, []byte("\n")) // its first line is a command
	return d
}

// Apply makes the change, and the backup. The file has the old or the new content at every moment,
// with the mode and the owner that it had.
func (c Change) Apply() error {
	if c.Empty() {
		return nil
	}
	if err := c.apply(); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	return nil
}

func (c Change) apply() error {
	if c.New == nil {
		return os.Remove(c.Path)
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return err
	}
	info, err := os.Stat(c.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.keeps {
		if err := replace(c.Backup(), c.Old, info); err != nil {
			return err
		}
	}
	if err := replace(c.Path, c.New, info); err != nil {
		return err
	}
	if c.restores {
		return os.Remove(c.Backup())
	}
	return nil
}

// replace writes a file beside path and renames it into place, with the mode and
// owner of info; nil means those of a new file.
func replace(path string, content []byte, info fs.FileInfo) (err error) {
	// The name has no suffix of a configuration file: engines read directories.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".boxlite-*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(content)
	if err == nil {
		err = dress(tmp, info)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// dress gives a file the mode and owner of info.
func dress(f *os.File, info fs.FileInfo) error {
	if info == nil {
		return f.Chmod(0o644)
	}
	own, err := f.Stat()
	if err != nil {
		return err
	}
	is, was := own.Sys().(*syscall.Stat_t), info.Sys().(*syscall.Stat_t)
	if is.Uid != was.Uid || is.Gid != was.Gid {
		if err := f.Chown(int(was.Uid), int(was.Gid)); err != nil {
			return fmt.Errorf("keep the owner: %w", err)
		}
	}
	return f.Chmod(info.Mode().Perm())
}
