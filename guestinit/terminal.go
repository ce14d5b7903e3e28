package main

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// openTerminal allocates a pty from the devpts of the calling thread's root.
// The slave belongs to uid.
func openTerminal(uid int, size *specs.Box, plainNewlines bool) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("number of the new terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), fmt.Sprintf("/dev/pts/%d", number))
	unlock := int32(0)
	if err := ioctlPointer(fd, unix.TIOCSPTLCK, unsafe.Pointer(&unlock)); err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("unlock terminal: %w", err)
	}
	// By ioctl, because a path could be anything in a container.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		master.Close()
		return nil, nil, fmt.Errorf("open terminal: %w", errno)
	}
	slave = os.NewFile(peer, master.Name())
	if err := unix.Fchown(int(peer), uid, -1); err != nil {
		master.Close()
		slave.Close()
		return nil, nil, fmt.Errorf("give terminal to user %d: %w", uid, err)
	}
	if plainNewlines {
		if err := leaveNewlines(int(peer)); err != nil {
			master.Close()
			slave.Close()
			return nil, nil, fmt.Errorf("terminal: %w", err)
		}
	}
	if size != nil && size.Width+size.Height > 0 {
		err = setWindowSize(int(peer), uint16(size.Width), uint16(size.Height))
	}
	return master, slave, err
}

// leaveNewlines has the terminal make no CR and LF of an LF.
func leaveNewlines(fd int) error {
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	mode.Oflag &^= unix.ONLCR
	return unix.IoctlSetTermios(fd, unix.TCSETS, mode)
}

func setWindowSize(fd int, width, height uint16) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
}

// bindConsole shows the terminal as the container's /dev/console.
func bindConsole(slave *os.File) error {
	const console = "/dev/console"
	f, err := os.OpenFile(console, os.O_CREATE|os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return err
	}
	f.Close()
	return mount(slave.Name(), console, "", unix.MS_BIND, "")
}
