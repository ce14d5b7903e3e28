package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags      uint64
	pidfd      uint64
	childTID   uint64
	parentTID  uint64
	exitSignal uint64
	stack      uint64
	stackSize  uint64
	tls        uint64
	setTID     uint64
	setTIDSize uint64
	cgroup     uint64
}

// The runtime's own fork hooks, as package syscall uses them: they block
// signals around the fork and forbid stack growth in the child.
//
//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// exitFailed is the status of a child that could not come to its execve, and
// of one whose execve failed: runc's.
const exitFailed = 1

// fork starts a child that follows s, in the namespaces of the calling thread
// and the new ones that flags ask for, and in the cgroup that the descriptor
// names (-1: that of guestinit). It returns the child's pid and a pidfd.
func fork(s *script, flags uint64, cgroup int) (pid, pidfd int, err error) {
	fd := new(int32)
	args := &cloneArgs{
		flags:      flags | unix.CLONE_PIDFD,
		pidfd:      uint64(uintptr(unsafe.Pointer(fd))),
		exitSignal: uint64(unix.SIGCHLD),
	}
	if cgroup >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(cgroup)
	}
	syscall.ForkLock.Lock()
	r, errno := forkAndFollow(args, s.head, s.sock)
	syscall.ForkLock.Unlock()
	if errno != 0 {
		return 0, -1, errno
	}
	return int(r), int(*fd), nil
}

// forkAndFollow is the fork and, in the child, the interpreter of the script.
// After the fork it may call nosplit functions only and must not allocate.
//
//go:noinline
//go:norace
//go:nocheckptr
func forkAndFollow(args *cloneArgs, head *scriptHead, sock int) (pid uintptr, errno syscall.Errno) {
	var (
		i      uint32
		st     *step
		result uintptr
	)
	runtimeBeforeFork()
	pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || pid != 0 {
		runtimeAfterFork()
		return pid, errno
	}
	runtimeAfterForkInChild()
	for i = 0; i < head.count; i++ {
		// Not &head.steps[i]: its bounds check would call into the runtime.
		st = (*step)(unsafe.Add(unsafe.Pointer(&head.steps), uintptr(i)*unsafe.Sizeof(step{})))
	again:
		result, _, errno = syscall.RawSyscall6(st.nr, st.args[0], st.args[1], st.args[2], st.args[3], st.args[4], st.args[5])
		switch st.kind {
		case must:
			if errno != 0 {
				goto failed
			}
		case await:
			if errno == syscall.EINTR {
				goto again
			}
			if errno != 0 || result != 1 {
				goto exit
			}
		case keep:
			if errno != 0 || head.results == maxResults {
				goto failed
			}
			*(*int32)(unsafe.Add(unsafe.Pointer(&head.result), uintptr(head.results)*4)) = int32(result)
			head.results++
		}
	}
failed:
	head.message[0], head.message[1] = int32(i), int32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(sock), uintptr(unsafe.Pointer(&head.message)), unsafe.Sizeof(head.message))
exit:
	syscall.RawSyscall(unix.SYS_EXIT_GROUP, exitFailed, 0, 0)
	// A seccomp filter can forbid even that; a fault cannot be forbidden.
	*nowhere = 0
	return
}

// nowhere is never set: writing there is a fault.
var nowhere *byte
