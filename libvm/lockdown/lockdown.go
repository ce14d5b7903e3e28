// Package lockdown takes from the calling process what the process no longer uses.
// It is for the processes that stand for a container on the host. They live as long
// as the container, and their work is to carry bytes.
//
// A guest may take over such a process by what it sends. Then it finds no program
// to execute, no file to write and no namespace to enter. It has only the
// capabilities that were kept.
package lockdown

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/seccomp"
)

// Enter locks the process down for good: all its threads and all that they will
// start.
//
//   - It keeps the listed capabilities, if it has them, and no others.
//   - It may read files below its root, and do nothing else with file systems. This
//     part needs Landlock (Linux 5.13) and is left out without.
//   - It may make the system calls in the list allowed, and no others.
//
// The program must have been built without cgo (syscall.AllThreadsSyscall).
func Enter(capabilities ...int) error {
	if err := landlock.V5.BestEffort().RestrictPaths(landlock.PathAccess(readFile, "/")); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := keep(capabilities); err != nil {
		return err
	}
	return filter(compiled)
}

// EnterMounting is Enter for a process that mounts what it has open in a root that holds
// nothing else. Landlock would forbid it to mount.
func EnterMounting() error {
	if err := keep([]int{unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH}); err != nil {
		return err
	}
	return filter(compiledMounting)
}

// EnterForUsers is Enter for a process that acts for several users. Its threads may
// take the ids of others (setresuid(2), setresgid(2)), and they have the capabilities
// nevertheless. It may not even read files.
func EnterForUsers(capabilities ...int) error {
	if err := landlock.V5.BestEffort().RestrictPaths(); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, noSetuidFixup); err != nil {
		return fmt.Errorf("set securebits: %w", err)
	}
	if err := keep(capabilities); err != nil {
		return err
	}
	return filter(compiledForUsers)
}

// noSetuidFixup is SECBIT_NO_SETUID_FIXUP and SECBIT_NO_SETUID_FIXUP_LOCKED.
const noSetuidFixup = 1<<2 | 1<<3

// readFile is LANDLOCK_ACCESS_FS_READ_FILE.
const readFile landlock.AccessFSSet = 1 << 2

// keep drops all capabilities but those.
func keep(capabilities []int) error {
	var kept [2]uint32
	for _, c := range capabilities {
		kept[c/32] |= 1 << (c % 32)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for i := range sets {
		sets[i].Permitted &= kept[i]
		sets[i].Effective = sets[i].Permitted
		sets[i].Inheritable = 0
	}
	if err := onAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0]))); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	runtime.KeepAlive(&header)
	runtime.KeepAlive(&sets)
	return nil
}

func onAllThreads(trap, a1, a2 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(trap, a1, a2, 0); errno != 0 {
		return errno
	}
	return nil
}

// filter forbids all system calls but those allowed.
func filter(compiled func() ([]unix.SockFilter, error)) error {
	program, err := compiled()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // no_new_privs is the thread's; with it the kernel gives the filter, and that, to all
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("seccomp: thread %d has another filter", thread)
	}
	return nil
}

// The programs of the filters.
var (
	compiled         = compile()
	compiledMounting = compile(mountCalls...)
	compiledForUsers = compile("setresuid", "setresgid")
)

func compile(more ...string) func() ([]unix.SockFilter, error) {
	return sync.OnceValues(func() ([]unix.SockFilter, error) {
		f, err := seccomp.Compile(policy(more...))
		if err != nil {
			return nil, fmt.Errorf("seccomp: %w", err)
		}
		if f == nil {
			return nil, errors.New("seccomp: the filter allows everything")
		}
		return f.Program, nil
	})
}
