package main

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an operating system thread of its own, which ends with f.
// f may change what belongs to a thread: namespaces, root and working
// directory, credentials of the file system. It must not start goroutines that
// rely on those: they run elsewhere.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and no unlock: the runtime ends the thread with the goroutine
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- fmt.Errorf("unshare thread's file system attributes: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// joinedNamespaces are those of a container that a thread can join beside the
// other threads of guestinit. The user and time namespaces are not among them;
// a process's script enters those. Nor is the cgroup namespace, in which a
// thread could not fork into the container's cgroup: it is itself outside.
const joinedNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// joinNamespaces moves the calling thread (see onThread) into namespaces of the
// process behind pidfd. The thread's children are then born there, its
// root and working directory are the root of the process's mount namespace.
func joinNamespaces(pidfd, which int) error {
	if err := unix.Setns(pidfd, which); err != nil {
		return fmt.Errorf("join the container's namespaces: %w", err)
	}
	return nil
}
