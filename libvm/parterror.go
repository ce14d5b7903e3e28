package libvm

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// partError reports a failure of one of boxlite's own parts. Docker and podman
// take "no such file or directory", "permission denied" and the like anywhere
// in an error for the container's command being at fault, and turn them into
// exit codes 127 and 126 (runtime-contract section 0, rule 9); so an errno is
// given by its name here. A nil err is no failure, and stays nil.
func partError(what string, err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("%s: %s", what, unix.ErrnoName(errno))
	}
	return fmt.Errorf("%s: %s", what, quiet(err.Error()))
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

func quiet(text string) string { return misread.Replace(text) }

// tailBuffer keeps the last limit bytes written to it.
type tailBuffer struct {
	mu    sync.Mutex
	limit int
	data  []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if over := len(t.data) - t.limit; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}
