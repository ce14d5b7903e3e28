package libvm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// Container is one container as its state file describes it.
type Container struct {
	State
	dir string
	rt  *Runtime
	// monitor is set in the process that made the container.
	monitor *exec.Cmd
}

// Wait returns the status of a container that this process has created, once
// it has ended.
func (c *Container) Wait() (int, error) {
	err := c.monitor.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	ws := c.monitor.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return ExitStatus{Signal: int(ws.Signal())}.Shell(), nil
	}
	return ws.ExitStatus(), nil
}

// Status is derived from the state file and the monitor process, without a word
// to the VM.
func (c *Container) Status() Status {
	switch {
	case !alive(c.Pid, c.PidStart):
		return specs.StateStopped
	case c.Paused:
		return StatePaused
	case c.Started:
		return specs.StateRunning
	default:
		return specs.StateCreated
	}
}

// OCIState is what the state command prints, as runtime.md, "State", says. The
// pid of a stopped container is zero.
func (c *Container) OCIState() specs.State {
	return c.ociState(c.Status())
}

func (c *Container) ociState(status Status) specs.State {
	st := specs.State{
		Version: c.OCIVersion, ID: c.ID, Status: status, Bundle: c.Bundle, Annotations: c.Spec.Annotations,
	}
	if status != specs.StateStopped {
		st.Pid = c.Pid
	}
	return st
}

// Start runs the container's process. It returns when the guest has executed
// it and the poststart hooks have run. A start that fails ends the container.
func (c *Container) Start() error {
	return c.locked(func() error {
		switch c.Status() {
		case specs.StateRunning:
			return ErrRunning
		case specs.StateStopped:
			return ErrStopped
		case StatePaused:
			return errors.New("cannot start a container in the paused state")
		}
		if c.Spec.Process == nil {
			return errors.New("config.json has no process: there is nothing to start")
		}
		err := c.askToStart()
		if errors.Is(err, ErrRunning) {
			return err
		}
		if err != nil {
			return errors.Join(c.afterVMLost(err), c.kill()) // as config.md says: generate an error, stop the container
		}
		if err := runHooks("poststart", c.Bundle, plan.Hooks(c.Spec).Poststart, c.ociState(specs.StateRunning)); err != nil {
			return errors.Join(err, c.kill())
		}
		return nil
	})
}

// askToStart has the monitor start the process, and writes down that it runs. The
// monitor hears that, or else ends the container.
func (c *Container) askToStart() error {
	asked := c.rt.Trace.Begin("start: ask the monitor")
	conn, reply, err := dialControl(c.dir, controlRequest{Op: controlStart, Trace: c.rt.Trace != nil})
	asked()
	c.rt.Trace.Add("monitor", 0, reply.Trace)
	if err != nil {
		return err
	}
	defer conn.Close()
	c.Started = true
	if err := writeState(c.dir, stateFile, &c.State); err != nil {
		return err
	}
	if err := guestproto.WriteFrame(conn, monitorEvent{Event: eventCommitted}); err != nil {
		return fmt.Errorf("start: %w", ErrVMLost)
	}
	return nil
}

// afterVMLost gives the reason for a VM's end where it is known.
func (c *Container) afterVMLost(err error) error {
	if !errors.Is(err, ErrVMLost) {
		return err
	}
	return fmt.Errorf("%w%s", err, consoleTail(c.dir))
}

// Signal sends a signal to the container init, or with all to every process of
// the container. The error matches ErrNotRunning for a stopped container, except
// that all there is no error: callers use it to make sure.
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
	conn, _, err := dialControl(c.dir, controlRequest{Op: controlSignal, Signal: signal, All: all})
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

// Delete removes a stopped or created container: cgroup, state and what is left
// of its network. With force it ends a running one first. Poststop hooks run at
// the end; their failure is a warning.
func (c *Container) Delete(force bool) error {
	if force && c.Status() != specs.StateStopped {
		// Not behind the lock: who holds it may be waiting for the guest.
		if err := c.kill(); err != nil {
			return err
		}
	}
	return c.locked(func() error {
		var err error
		switch status := c.Status(); status {
		case specs.StateStopped:
		case specs.StateCreated:
			err = c.kill()
		default:
			if !force {
				return fmt.Errorf("cannot delete container %s that is not stopped: %s", c.ID, status)
			}
			err = c.kill()
		}
		if err != nil {
			return err
		}
		return c.remove()
	})
}

// remove takes away what is left of a container whose monitor has ended: cgroup,
// what is in a network namespace that outlives it, state dir. Then the poststop hooks
// run. What could not be taken away is an error, and keeps the rest in place for
// another try.
func (c *Container) remove() error {
	if err := c.destroyCgroup(); err != nil {
		return err
	}
	c.restoreNetwork()
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	dir := c.Bundle
	if _, err := os.Stat(dir); err != nil {
		dir = "" // the caller's: a bundle that has gone keeps no hook from running
	}
	if err := runHooks("poststop", dir, plan.Hooks(c.Spec).Poststop, c.ociState(specs.StateStopped)); err != nil {
		c.rt.Log.Warn(err.Error(), "id", c.ID)
	}
	return nil
}

// restoreNetwork gives a namespace that outlives the container back as it was,
// after a monitor that was killed.
func (c *Container) restoreNetwork() {
	if c.NetNS == "" {
		return
	}
	if err := restoreNetwork(c.NetNS, c.ID); err != nil {
		c.rt.Log.Warn("network namespace", "id", c.ID, "path", c.NetNS, "error", err)
	}
}

func (c *Container) destroyCgroup() error {
	if c.Cgroup == nil {
		return nil
	}
	cg, err := hostcgroup.Load(*c.Cgroup)
	if err != nil {
		return cgroupError(err)
	}
	if err := cg.Destroy(); err != nil {
		return cgroupError(err)
	}
	return nil
}

// DeleteRemains removes what a create that was killed left of id. It is for
// delete --force, which must not fail where nothing can be loaded.
func (r *Runtime) DeleteRemains(id string) error {
	dir, err := stateDir(r.Root, id)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, lockFile)); err != nil {
		return nil // nothing, or not ours
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := readState(dir, stateFile); err == nil {
		return nil // it has come to life after all
	}
	if state, err := readState(dir, birthFile); err == nil {
		c := &Container{State: *state, dir: dir, rt: r}
		if err := c.kill(); err != nil {
			return err
		}
		return c.remove()
	}
	return os.RemoveAll(dir)
}

// HostPids lists the host's processes that stand for the container's: the
// monitor and one for each exec, but not QEMU and virtiofsd. Of a stopped
// container there are none.
func (c *Container) HostPids() ([]int, error) {
	if c.Status() == specs.StateStopped {
		return nil, nil
	}
	if c.Cgroup == nil || len(c.Cgroup.Paths) == 0 {
		return []int{c.Pid}, nil // without a cgroup nobody knows the execs' processes
	}
	cg, err := hostcgroup.Load(*c.Cgroup)
	if err != nil {
		return nil, err
	}
	pids, err := cg.Pids()
	return standIns(pids, c.Pid, c.Keeper), err
}

// commandError is a guest's complaint about the command of an exec.
func commandError(err error) error {
	var ge *guestproto.Error
	if errors.As(err, &ge) && ge.Code == guestproto.CodeCommand {
		return fmt.Errorf("exec failed: unable to start container process: %w", err)
	}
	return err
}

// standIns are those of a cgroup's processes that stand for a container's: the
// monitor and each exec's. The others are below the monitor, or QEMU's keeper and
// below that; keeper is zero if there is none.
func standIns(pids []int, monitor, keeper int) []int {
	parents := map[int]int{}
	for _, pid := range pids {
		if st, err := statProcess(pid); err == nil {
			parents[pid] = st.parent
		}
	}
	var found []int
	for _, pid := range pids {
		above, alive := parents[pid]
		known := alive
		for known && above != monitor && above != keeper {
			above, known = parents[above]
		}
		if alive && !known && pid != keeper {
			found = append(found, pid)
		}
	}
	return found
}

// locked runs f with the container's lock held and its state read anew.
func (c *Container) locked(f func() error) error {
	unlock, err := lock(c.dir)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := readState(c.dir, stateFile)
	if err != nil {
		return err
	}
	c.State = *state
	return f()
}

// request asks the monitor for something that has no answer but success.
func (c *Container) request(req controlRequest) error {
	conn, _, err := dialControl(c.dir, req)
	if err != nil {
		return err
	}
	return conn.Close()
}
