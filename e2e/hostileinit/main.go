// Command hostileinit is a PID 1 for the guest that does to the host whatever whoever owns a guest could. A container's
// environment names what: HOSTILE=NAME[:OPERATION[:ARGUMENT]]. Up to there it answers as guestinit does, and makes nothing:
// a container's process is a word that only SIGKILL ends, and one of an exec has ended already, unless it is "sleep".
//
// Its end of the session is made by hand, frame by frame: it can say what yamux would not.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/tsc"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "hostileinit: runs as PID 1 of a boxlite guest only")
		os.Exit(2)
	}
	booted, _ := tsc.Now() // the tests' machines have one
	check("mount", mountSystem())
	device, err := findControlPort()
	check("find control port", err)
	p, err := openPort(device)
	check("open control port", err)
	for {
		check("await the host", p.awaitHost())
		first := make([]byte, 1)
		if _, err := io.ReadFull(p, first); err != nil {
			continue // the host has gone again
		}
		if first[0] == guestproto.ClockRate {
			check("say how fast the clock is", p.sayClockRate(booted))
			continue
		}
		p.ahead = first
		newGuest(p).serve() // a template is saved before the first session, which may so be in a copy
	}
}

// check ends the guest on a failed boot step, which shows on the VM's console.
func check(step string, err error) {
	if err != nil {
		logf("%s: %v", step, err)
		os.Exit(1)
	}
}

// logf writes to the VM's console. The standard streams may be none: see guestinit's adoptConsole.
func logf(format string, args ...any) {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer console.Close()
	fmt.Fprintf(console, "hostileinit: "+format+"\n", args...)
}

func mountSystem() error {
	for _, m := range []struct{ dir, fstype string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/sys/fs/cgroup", "cgroup2"}} {
		if err := os.Mkdir(m.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// findControlPort polls: here nothing is lost by it.
func findControlPort() (device string, err error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		const class = "/sys/class/virtio-ports"
		ports, _ := os.ReadDir(class) // none yet
		for _, p := range ports {
			name, err := os.ReadFile(class + "/" + p.Name() + "/name")
			if err == nil && strings.TrimSpace(string(name)) == guestproto.ControlPort {
				return "/dev/" + p.Name(), nil
			}
		}
	}
	return "", fmt.Errorf("no virtio-serial port is called %s", guestproto.ControlPort)
}

// A port is the guest's end of the control port, as in guestinit.
type port struct {
	*os.File
	epoll int    // tells, edge-triggered, of changes
	ahead []byte // has been read to see what comes
}

func (p *port) Read(b []byte) (int, error) {
	if len(p.ahead) > 0 {
		n := copy(b, p.ahead)
		p.ahead = p.ahead[n:]
		return n, nil
	}
	return p.File.Read(b)
}

// sayClockRate is true: what lies is not saved.
func (p *port) sayClockRate(booted tsc.Moment) error {
	now, err := tsc.Now()
	if err != nil {
		return err
	}
	khz, _, err := booted.KHz(now)
	if err != nil {
		return err
	}
	body, err := json.Marshal(guestproto.ClockRateReply{TSCKHz: khz})
	if err != nil {
		return err
	}
	return guestproto.WriteFrame(p, guestproto.Reply{Body: body})
}

func openPort(device string) (*port, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return nil, err
	}
	return &port{File: os.NewFile(uintptr(fd), device), epoll: epoll}, nil
}

// awaitHost blocks until a monitor has its end open. While none has, reads return an end of file at once.
func (p *port) awaitHost() error {
	conn, err := p.SyscallConn()
	if err != nil {
		return err
	}
	for {
		connected := false
		if err := conn.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			_, err := unix.Poll(poll, 0)
			connected = err == nil && poll[0].Revents&unix.POLLHUP == 0
		}); err != nil {
			return err
		}
		if connected {
			return nil
		}
		if _, err := unix.EpollWait(p.epoll, make([]unix.EpollEvent, 1), -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
