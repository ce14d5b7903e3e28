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

// Wrap reports a failure of one of boxlite's own parts. Docker and podman
// take "no such file or directory", "permission denied" and the like anywhere
// in an error for the container's command being at fault, and turn them into
// exit codes 127 and 126 (docs/contract.md, "Errors"); so an errno is
// given by its name here. A nil err is no failure, and stays nil.
func Wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("%s: %s", what, unix.ErrnoName(errno))
	}
	return fmt.Errorf("%s: %s", what, Quiet(err.Error()))
}

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

// Quiet is a text with those phrases replaced.
func Quiet(text string) string { return misread.Replace(text) }

// Tail keeps the last Limit bytes written to it.
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
