package libvm

import (
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Signal sends a signal to the container init, or to every process of the container
// if all is set. For a stopped container the error matches ErrNotRunning. With all
// a stopped container is no error, as callers use that to make sure that nothing is
// left.
func (c *Container) Signal(signal int, all bool) error {
	err := c.signal(signal, all)
	if all && errors.Is(err, ErrNotRunning) {
		return nil
	}
	return err
}

func (c *Container) signal(signal int, all bool) error {
	if c.Status() == specs.StateStopped {
		return ErrNotRunning
	}
	conn, _, err := c.dial(controlRequest{Op: controlSignal, Signal: signal, All: all})
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, ErrNotRunning):
		// Whoever asks for the state next shall hear the same: podman gives up on
		// a container that runs and cannot be killed.
		return errors.Join(err, c.awaitEnd())
	case signal == int(unix.SIGKILL):
		return c.kill() // a monitor that cannot pass it on can still be ended
	case errors.Is(err, ErrVMLost):
		return ErrNotRunning // since just now
	}
	return err
}

// kill ends the monitor and with it the VM, and waits for its end.
func (c *Container) kill() error {
	return c.withMonitor(func(fd int) error {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill the monitor: %w", err)
		}
		return waitPidfd(fd, deleteTimeout)
	})
}

// awaitEnd waits for the end of a monitor whose container has ended.
func (c *Container) awaitEnd() error {
	return c.withMonitor(func(fd int) error { return waitPidfd(fd, deleteTimeout) })
}

// withMonitor calls f with a pidfd of the monitor, unless that has ended.
func (c *Container) withMonitor(f func(fd int) error) error {
	fd, err := unix.PidfdOpen(c.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", c.Pid, err)
	}
	defer unix.Close(fd)
	if !alive(c.Pid, c.PidStart) { // the pid was another process's when the pidfd was opened
		return nil
	}
	return f(fd)
}

// deleteTimeout bounds the wait for a monitor that is to end, as runc's does.
const deleteTimeout = 10 * time.Second

// waitPidfd waits until the process behind a pidfd has ended.
func waitPidfd(fd int, timeout time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(timeout)
	for {
		n, err := unix.Poll(fds, int(max(time.Until(deadline), 0).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the monitor: %w", err)
		case n == 0:
			return fmt.Errorf("the monitor has not ended within %s", timeout)
		default:
			return nil
		}
	}
}
