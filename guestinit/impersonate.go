package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// becomeForFiles gives the calling thread (see onThread) the ids and the
// effective capabilities with which a process of the container looks at files.
// Package unix would change them for all threads.
func becomeForFiles(uid, gid int, groups []uint32, effective uint64) error {
	// All first: an earlier call may have left the thread without CAP_SETGID.
	if err := setEffective(allCapabilities); err != nil {
		return err
	}
	list := unsafe.Pointer(unsafe.SliceData(append(groups, 0)))
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); errno != 0 {
		return fmt.Errorf("set groups of thread: %w", errno)
	}
	// These two report nothing; they return the previous ids.
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	return setEffective(effective)
}

// setEffective sets the thread's effective capabilities. It keeps them all
// permitted.
func setEffective(effective uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	sets := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(allCapabilities & 0xffffffff)},
		{Effective: uint32(effective >> 32), Permitted: uint32(allCapabilities >> 32)},
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("set capabilities of thread: %w", err)
	}
	return nil
}
