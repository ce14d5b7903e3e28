package guestproto

import "fmt"

// Code classifies an error that crosses the boundary.
type Code string

// The codes. Those about the command keep runc's text in Message as it stands,
// because callers match it; see docs/contract.md, "Errors".
const (
	CodeInternal   Code = "internal"
	CodeCommand    Code = "command"    // args[0] cannot be executed, or not in cwd; Message is runc's wording
	CodeNoProcess  Code = "no-process" // no such process, or it has ended
	CodeBadRequest Code = "bad-request"
	CodeHook       Code = "hook"      // a startContainer hook has failed
	CodeDiskFull   Code = "disk-full" // ENOSPC, as a rule of a disk of the host's behind a share
)

// Error is a failure inside the guest.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error of the given code.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
