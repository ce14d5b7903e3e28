package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loopbackUp sets lo up with two ioctls, which is cheaper at boot than a
// netlink conversation; the kernel then adds 127.0.0.1/8 and ::1 by itself.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	return interfaceUp(fd, "lo")
}

func interfaceUp(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := ioctlPointer(fd, unix.SIOCGIFFLAGS, unsafe.Pointer(ifr)); err != nil {
		return fmt.Errorf("flags of %s: %w", name, err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
	if err := ioctlPointer(fd, unix.SIOCSIFFLAGS, unsafe.Pointer(ifr)); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func ioctlPointer(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
