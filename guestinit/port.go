package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// portTimeout bounds the wait for the control port. It is a device of the
// machine, so it is there from the start but for a slow probe.
const portTimeout = 10 * time.Second

// A controlPort is the guest's end of the port that the monitor speaks through.
type controlPort struct {
	file *os.File
	// epoll tells, edge-triggered, of changes of the port.
	epoll int
	// ahead is what peek has read.
	ahead []byte
}

// findControlPort returns the device of the port that has the name.
func findControlPort() (device string, err error) {
	err = awaitUevent(portTimeout, func() error {
		const class = "/sys/class/virtio-ports"
		ports, err := os.ReadDir(class)
		if err != nil {
			return err
		}
		for _, port := range ports {
			text, err := os.ReadFile(class + "/" + port.Name() + "/name")
			if err == nil && strings.TrimSpace(string(text)) == guestproto.ControlPort {
				device = "/dev/" + port.Name()
				_, err = os.Stat(device)
				return err
			}
		}
		return fmt.Errorf("no virtio-serial port is called %s", guestproto.ControlPort)
	})
	return device, err
}

// openControlPort opens the port, which QEMU reports to the monitor.
func openControlPort(device string) (*controlPort, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: device, Err: err}
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return nil, fmt.Errorf("watch %s: %w", device, err)
	}
	return &controlPort{file: os.NewFile(uintptr(fd), device), epoll: epoll}, nil
}

// awaitHost blocks until a monitor has the host's end of the port open. While
// none has, reads return an end of file at once.
func (p *controlPort) awaitHost() error {
	fd, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	for {
		connected := false
		var pollErr error
		err := fd.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			_, pollErr = unix.Poll(poll, 0)
			connected = poll[0].Revents&unix.POLLHUP == 0
		})
		if err := errors.Join(err, pollErr); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll control port: %w", err)
		}
		if connected {
			return nil
		}
		if _, err := unix.EpollWait(p.epoll, make([]unix.EpollEvent, 1), -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the control port: %w", err)
		}
	}
}

// peek returns the next byte. The byte has been read if it is one of those.
func (p *controlPort) peek(those ...byte) (byte, error) {
	next := make([]byte, 1)
	if _, err := io.ReadFull(p, next); err != nil {
		return 0, err
	}
	if !slices.Contains(those, next[0]) {
		p.ahead = next
	}
	return next[0], nil
}

func (p *controlPort) Read(b []byte) (int, error) {
	if len(p.ahead) > 0 {
		n := copy(b, p.ahead)
		p.ahead = p.ahead[n:]
		return n, nil
	}
	return p.file.Read(b)
}

func (p *controlPort) Write(b []byte) (int, error) { return p.file.Write(b) }

// Close does nothing: the port outlives each session that is held over it.
func (p *controlPort) Close() error { return nil }
