package libvm

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/console"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// openConsole makes a pty, sends its master to whoever listens on socketPath,
// and makes the slave, in raw mode, the controlling terminal of the calling
// process, which must lead its session. The guest's own pty does the line
// discipline. size may be nil.
func openConsole(socketPath string, size *specs.Box) (slave *os.File, err error) {
	master, name, err := console.NewPty()
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	defer func() { err = errors.Join(err, master.Close()) }()
	if size != nil && size.Height > 0 && size.Width > 0 {
		if err := master.Resize(console.WinSize{Height: uint16(size.Height), Width: uint16(size.Width)}); err != nil {
			return nil, fmt.Errorf("console size: %w", err)
		}
	}
	// Opened without O_NOCTTY by a session leader that has no terminal yet, the
	// slave becomes its controlling terminal (tty_ioctl(4), TIOCSCTTY).
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("console %s: %w", name, err)
	}
	slave = os.NewFile(uintptr(fd), name)
	if err := letGoOfStdio(); err != nil {
		return nil, errors.Join(err, slave.Close())
	}
	if _, err := term.MakeRaw(fd); err != nil {
		return nil, errors.Join(fmt.Errorf("console: set raw mode: %w", err), slave.Close())
	}
	if err := fdpass.SendNamed(socketPath, name, master.Fd()); err != nil {
		return nil, errors.Join(fmt.Errorf("console socket: %w", err), slave.Close())
	}
	return slave, nil
}

func letGoOfStdio() error {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.Wrap("open "+os.DevNull, err)
	}
	defer unix.Close(null)
	for fd := range 3 {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return fault.Wrap("dup3", err)
		}
	}
	return nil
}

// windowSize reads a terminal's size.
func windowSize(tty *os.File) (width, height uint16, err error) {
	ws, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, err
	}
	return ws.Col, ws.Row, nil
}

// resize brings the guest's pty to the size of tty.
func (g *guest) resize(process string, tty *os.File) error {
	w, h, err := windowSize(tty)
	if err != nil || w == 0 || h == 0 {
		return err
	}
	return g.call(guestproto.OpResize, guestproto.ResizeRequest{Process: process, Width: w, Height: h}, nil, promptly)
}

// callersTerminal finds the terminal that the caller of a process with one sits
// at, as runc does: any of its streams may be elsewhere, and all of them.
func callersTerminal(stdio Stdio) (*os.File, error) {
	for _, f := range []*os.File{stdio.Stderr, stdio.Stdout, stdio.Stdin} {
		if term.IsTerminal(int(f.Fd())) {
			return f, nil
		}
	}
	return os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
}

// rawTerminal puts the caller's own terminal into raw mode and returns what puts
// it back. What a newline is on it stays the terminal's affair: that of the process
// leaves newlines as they are.
func rawTerminal(tty *os.File) (restore func(), err error) {
	c, err := console.ConsoleFromFile(tty)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	if err := c.SetRaw(); err != nil {
		return nil, fmt.Errorf("terminal: set raw mode: %w", err)
	}
	return func() { _ = c.Reset() }, nil // a terminal that is gone needs no reset
}

// SendPidfd sends a pidfd of the container's monitor to a listening socket, as
// runc 1.2's --pidfd-socket does.
func (c *Container) SendPidfd(socketPath string) error { return sendPidfd(c.Pid, socketPath) }

func sendPidfd(pid int, socketPath string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := fdpass.SendNamed(socketPath, "pidfd", uintptr(fd)); err != nil {
		return fmt.Errorf("pidfd socket: %w", err)
	}
	return nil
}
