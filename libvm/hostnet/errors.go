package hostnet

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// A namedError shows the names of error numbers, EPERM, in place of their
// texts. Docker and podman read "operation not permitted", "not found" and
// their like in any error of a runtime as the fault of the container's command.
type namedError struct{ error }

func (e namedError) Error() string {
	text := e.error.Error()
	var errno unix.Errno
	if errors.As(e.error, &errno) {
		text = strings.ReplaceAll(text, errno.Error(), unix.ErrnoName(errno))
	}
	return strings.ReplaceAll(text, "not found", "missing")
}

func (e namedError) Unwrap() error { return e.error }

func named(err error) error {
	if err == nil {
		return nil
	}
	return namedError{err}
}
