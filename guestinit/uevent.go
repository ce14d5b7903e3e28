package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// awaitUevent calls try until it succeeds, at first and then after each event
// of the kernel's device model, and gives up with try's last error after the
// timeout. Devices that the monitor plugs in announce themselves that way.
func awaitUevent(timeout time.Duration, try func() error) error {
	err := try()
	if err == nil {
		return nil
	}
	fd, sockErr := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if sockErr != nil {
		return fmt.Errorf("open uevent socket: %w", sockErr)
	}
	events := os.NewFile(uintptr(fd), "uevents")
	defer events.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("subscribe to uevents: %w", err)
	}
	if err := events.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return fmt.Errorf("wait for uevents: %w", err)
	}
	buf := make([]byte, 8<<10)
	for {
		// First again: the device may have come before the subscription.
		if err = try(); err == nil {
			return nil
		}
		_, readErr := events.Read(buf)
		switch {
		case errors.Is(readErr, os.ErrDeadlineExceeded):
			return fmt.Errorf("%w (waited %v for the device)", err, timeout)
		case readErr != nil && !errors.Is(readErr, unix.ENOBUFS): // overrun: try anyway
			return fmt.Errorf("wait for uevents: %w", readErr)
		}
		for drained := false; !drained; {
			_, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
			drained = err != nil
		}
	}
}
