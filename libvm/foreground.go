package libvm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/containerd/console"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// Foreground makes the calling process stand for a container that it runs in the
// foreground. It copies the container's terminal, if there is one, to the caller's,
// and passes signals on. The order of calls is NewForeground, Create, Attach,
// Start, Wait, Close.
type Foreground struct {
	socket   string // console socket given by the caller
	dir      string // directory of our own console socket
	listener *net.UnixListener

	ctr     *Container
	signals <-chan os.Signal
	stdio   Stdio
	tty     *os.File // the caller's terminal, nil for none
	master  console.Console
	restore func()
	output  chan struct{} // closed when the terminal's output has been copied
}

// NewForeground prepares for a container with spec. Where that asks for a
// terminal and the caller has given no console socket, the terminal will be
// copied to and from stdio.
func NewForeground(spec *specs.Spec, consoleSocket string, stdio Stdio) (*Foreground, error) {
	fg := &Foreground{socket: consoleSocket, stdio: stdio}
	if spec.Process == nil || !spec.Process.Terminal || consoleSocket != "" {
		return fg, nil
	}
	tty, err := callersTerminal(stdio)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "boxlite-run-")
	if err != nil {
		return nil, err
	}
	fg.tty = tty
	fg.dir, fg.socket = dir, filepath.Join(dir, "console")
	if fg.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: fg.socket, Net: "unix"}); err != nil {
		return nil, errors.Join(err, fg.Close())
	}
	return fg, nil
}

// ConsoleSocket and PlainNewlines are what Create shall be given.
func (fg *Foreground) ConsoleSocket() string { return fg.socket }

// PlainNewlines says that a terminal of the caller's shows what comes from the
// container's.
func (fg *Foreground) PlainNewlines() bool { return fg.tty != nil }

// Attach takes over a created container: signals from now on are its own, and
// the caller's terminal is in raw mode.
func (fg *Foreground) Attach(ctr *Container) error {
	fg.ctr = ctr
	fg.signals = catchSignals()
	if fg.listener == nil {
		return nil
	}
	if err := fg.receiveMaster(); err != nil {
		return err
	}
	restore, err := rawTerminal(fg.tty)
	if err != nil {
		return err
	}
	fg.restore, fg.output = restore, make(chan struct{})
	fg.resize()
	go func() { _, _ = io.Copy(fg.master, fg.stdio.Stdin) }() // ends with the process
	go func() {
		_, _ = io.Copy(fg.stdio.Stdout, fg.master) // EIO is how a pty ends
		close(fg.output)
	}()
	return nil
}

func (fg *Foreground) receiveMaster() error {
	master, err := fdpass.ReceiveNamed(fg.listener)
	if err != nil {
		return fmt.Errorf("console socket: %w", err)
	}
	fg.master, err = console.ConsoleFromFile(master)
	return err
}

func (fg *Foreground) resize() {
	if w, h, err := windowSize(fg.tty); err == nil {
		_ = fg.master.Resize(console.WinSize{Width: w, Height: h}) // a container that has ended shows in Wait
	}
}

// Wait passes signals on until the container has ended, and returns its status
// in the form of a shell's.
func (fg *Foreground) Wait() (int, error) {
	type end struct {
		status int
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		status, err := fg.ctr.Wait()
		ended <- end{status, err}
	}()
	for {
		select {
		case e := <-ended:
			if fg.output != nil {
				<-fg.output
			}
			return e.status, e.err
		case s := <-fg.signals:
			if s == unix.SIGWINCH && fg.master != nil {
				fg.resize()
				continue
			}
			_ = fg.ctr.monitor.Process.Signal(s) // one that has ended shows in Wait
		}
	}
}

// Close gives the terminal back and removes what NewForeground made.
func (fg *Foreground) Close() error {
	if fg.restore != nil {
		fg.restore()
	}
	if fg.dir == "" {
		return nil
	}
	var err error
	if fg.listener != nil {
		err = fg.listener.Close()
	}
	return errors.Join(err, os.RemoveAll(fg.dir))
}
