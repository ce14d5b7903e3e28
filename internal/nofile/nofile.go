// Package nofile knows how many open files the process was allowed when it began. Go
// raises that limit in package syscall's init, and keeps what it was to itself.
//
// It imports nothing, so that it comes before syscall: the Go specification ("Program
// initialization") has the packages that wait for no other initialized in the order of
// their paths.
package nofile

import "unsafe"

// Soft and Hard are the limits of RLIMIT_NOFILE. Both are zero if they are not known.
var Soft, Hard uint64

//go:linkname rawSyscall6 syscall.RawSyscall6
func rawSyscall6(nr, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2, errno uintptr)

// SYS_PRLIMIT64 and RLIMIT_NOFILE of x86-64.
const (
	sysPrlimit64 = 302
	rlimitNofile = 7
)

var limit [2]uint64

func init() {
	if _, _, errno := rawSyscall6(sysPrlimit64, 0, rlimitNofile, 0, uintptr(unsafe.Pointer(&limit)), 0, 0); errno == 0 {
		Soft, Hard = limit[0], limit[1]
	}
}
