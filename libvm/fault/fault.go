// Package fault words the failures of boxlite's own parts, so that no caller takes
// them for a failure of the container's command.
package fault

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Wrap makes the error for a failure of one of boxlite's own parts. Docker and
// podman look for "no such file or directory", "permission denied" and the like
// anywhere in an error. They take such an error for a fault of the container's
// command, with exit code 127 or 126 (docs/contract.md, "Errors"). So Wrap gives an
// errno by its name. The error still matches the errno. A nil err stays nil.
func Wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return &wrapped{what + ": " + unix.ErrnoName(errno), errno}
	}
	return fmt.Errorf("%s: %s", what, Quiet(err.Error()))
}

type wrapped struct {
	text  string
	errno unix.Errno
}

func (w *wrapped) Error() string { return w.text }

func (w *wrapped) Unwrap() error { return w.errno }

// Killed says of a process that was killed why that may be, and what to do.
const Killed = "as this machine's kernel does for want of memory: dmesg says so; give the machine, or the cgroup above the container, more"

// misread are the phrases that callers would misunderstand, with what is said
// in their place.
var misread = strings.NewReplacer(
	"No such file or directory", "ENOENT", "no such file or directory", "ENOENT", "no such file", "ENOENT",
	"Permission denied", "EACCES", "permission denied", "EACCES",
	"Operation not permitted", "EPERM", "operation not permitted", "EPERM",
	"Not a directory", "ENOTDIR", "not a directory", "ENOTDIR",
	"Is a directory", "EISDIR", "is a directory", "EISDIR",
	"not found", "missing",
)

// Quiet returns the text with the phrases replaced that callers would
// misunderstand.
func Quiet(text string) string { return misread.Replace(text) }

// Tail is a writer that keeps the last Limit bytes written to it. Several
// goroutines may use it.
type Tail struct {
	mu    sync.Mutex
	Limit int
	data  []byte
}

func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if over := len(t.data) - t.Limit; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}
