package main

import (
	"errors"
	"fmt"
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
	fd, sockErr := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if sockErr != nil {
		return fmt.Errorf("open uevent socket: %w", sockErr)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("subscribe to uevents: %w", err)
	}
	buf := make([]byte, 8<<10)
	for deadline := time.Now().Add(timeout); ; {
		// First again: the device may have come before the subscription.
		if err = try(); err == nil {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%w (waited %v for the device)", err, timeout)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for uevents: %w", err)
		}
		for {
			if _, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT); err != nil {
				break // drained, or overrun: try anyway
			}
		}
	}
}
