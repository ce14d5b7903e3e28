package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// lookPath finds the executable that name stands for, as runc does with
// os/exec, but with the given PATH and relative to cwd. Its errors are runc's
// texts, which callers match.
func lookPath(name, path, cwd string) (string, error) {
	fail := func(text string) error {
		return guestproto.Errorf(guestproto.CodeCommand, "exec: %q: %s", name, text)
	}
	if strings.Contains(name, "/") {
		if err := executable(absolute(name, cwd), name); err != nil {
			return "", fail(err.Error())
		}
		return name, nil
	}
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := filepath.Join(dir, name)
		if executable(absolute(file, cwd), file) != nil {
			continue
		}
		if !filepath.IsAbs(file) {
			return "", fail("cannot run executable found relative to current directory")
		}
		return file, nil
	}
	return "", fail("executable file not found in $PATH")
}

func absolute(file, cwd string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join("/", cwd, file)
}

// executable says why the calling thread's user cannot execute file; shown is
// how the command line has it.
func executable(file, shown string) error {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return &os.PathError{Op: "stat", Path: shown, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EACCES // runc before 1.2; newer ones say "is a directory"
	}
	err := unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOEXEC) || st.Mode&0o111 == 0 {
		return unix.EACCES
	}
	return err
}

// environment returns the value of the last setting of key in env.
func environment(env []string, key string) (value string, ok bool) {
	for _, setting := range env {
		if v, found := strings.CutPrefix(setting, key+"="); found {
			value, ok = v, true
		}
	}
	return value, ok
}
