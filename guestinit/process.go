package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// A process is the container init or an exec process.
type process struct {
	id    string
	pid   int
	stdio *stdio

	// pidfdLock keeps a signal from a descriptor that is being closed, and
	// may be another file's by then.
	pidfdLock sync.Mutex
	pidfd     int // -1 before the fork and when forgotten

	// file is the program where it is not to be found by args[0].
	file string
	// timedOut says that terminate has ended it.
	timedOut atomic.Bool

	// script and sock belong to the time before execve.
	script    *script
	sock      *os.File
	childSock int

	// ended is closed when the process has been reaped, after status is set.
	ended  chan struct{}
	status unix.WaitStatus
}

// newProcess makes a process with an empty script.
func newProcess(id string, scriptMemory int) (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket pair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	p := &process{id: id, pidfd: -1, stdio: newStdio(), childSock: fds[1], ended: make(chan struct{})}
	p.sock = os.NewFile(uintptr(fds[0]), "process")
	if p.script, err = newScript(fds[1], scriptMemory); err != nil {
		p.release()
		return nil, err
	}
	return p, nil
}

// fork starts the process. It runs on the thread whose namespaces it shall be in.
func (p *process) fork(children *reaper, flags uint64, cgroup int) error {
	status, err := children.start(func() (int, error) {
		var err error
		p.pid, p.pidfd, err = fork(p.script, flags, cgroup)
		return p.pid, err
	})
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	_ = unix.Close(p.childSock)
	p.childSock = -1
	go func() {
		p.status = <-status
		close(p.ended)
		p.stdio.end()
	}()
	return nil
}

// A stepError is a script's step that failed.
type stepError struct {
	what string
	err  error
}

func (e *stepError) Error() string { return e.what + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// errEnded says that the process ended, or came to its execve, unexpectedly.
var errEnded = errors.New("the process ended while it was being set up")

// awaitReport waits for the script's next report step.
func (p *process) awaitReport() error {
	var message [8]byte
	n, err := p.sock.Read(message[:])
	switch {
	case err == io.EOF || errors.Is(err, unix.ECONNRESET):
		return errEnded
	case err != nil:
		return fmt.Errorf("read from the process: %w", err)
	case n == len(message):
		index := binary.NativeEndian.Uint32(message[:])
		errno := unix.Errno(binary.NativeEndian.Uint32(message[4:]))
		what := "script"
		if int(index) < len(p.script.what) {
			what = p.script.what[index]
		}
		err := &stepError{what: what, err: errno}
		if int(index) == p.script.chdir {
			return guestproto.Errorf(guestproto.CodeCommand, "%v", err)
		}
		return err
	}
	return nil
}

// proceed releases the script's next await step.
func (p *process) proceed() error {
	if _, err := p.sock.Write([]byte{0}); err != nil {
		return fmt.Errorf("write to the process: %w", err)
	}
	return nil
}

// awaitExec waits until the execve has succeeded or failed. A failure of the
// execve itself is no error of ours: as under runc its text is the last thing
// on the process's stderr.
func (p *process) awaitExec() error {
	err := p.awaitReport()
	defer p.release()
	var step *stepError
	switch {
	case errors.Is(err, errEnded):
		return nil // closed by execve, or by an end that wait will tell of
	case errors.As(err, &step) && step.what == p.script.what[len(p.script.what)-1]:
		p.stdio.complain(step.Error())
		return nil
	}
	return err
}

// release frees what is only needed before execve.
func (p *process) release() {
	if p.script != nil {
		p.script.close()
		p.script = nil
	}
	if p.sock != nil {
		_ = p.sock.Close()
		p.sock = nil
	}
	if p.childSock >= 0 {
		_ = unix.Close(p.childSock)
		p.childSock = -1
	}
	p.stdio.releaseChild()
}

// kill ends a process that failed to start, and everything of it.
func (p *process) kill() {
	if p.pidfd >= 0 {
		_ = p.signal(unix.SIGKILL)
		<-p.ended
	}
	p.release()
	p.forget()
}

// forget frees what is left of a process that has ended.
func (p *process) forget() {
	p.pidfdLock.Lock()
	defer p.pidfdLock.Unlock()
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd)
		p.pidfd = -1
	}
	p.stdio.close()
}

// signal sends a signal to the process alone.
func (p *process) signal(sig unix.Signal) error {
	p.pidfdLock.Lock()
	defer p.pidfdLock.Unlock()
	err := error(unix.ESRCH)
	if p.pidfd >= 0 {
		err = unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	}
	switch {
	case errors.Is(err, unix.ESRCH):
		return guestproto.Errorf(guestproto.CodeNoProcess, "no such process")
	case err != nil:
		return fmt.Errorf("send signal %d: %w", int(sig), err)
	}
	return nil
}

// resize sets the size of the process's terminal.
func (p *process) resize(width, height uint16) error {
	if p.stdio.terminal == nil {
		return guestproto.Errorf(guestproto.CodeBadRequest, "the process has no terminal")
	}
	conn, err := p.stdio.terminal.SyscallConn()
	if err != nil {
		return err
	}
	var sizeErr error
	err = conn.Control(func(fd uintptr) { sizeErr = setWindowSize(int(fd), width, height) })
	return errors.Join(err, sizeErr)
}
