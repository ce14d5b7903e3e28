package libvm

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
)

// Container is one container as its state file describes it.
type Container struct {
	State
	dir string
	rt  *Runtime
	// monitor is set in the process that made the container. For a member of a pod it is
	// the stand-in.
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
		return guestproto.ExitStatus{Signal: int(ws.Signal())}.Shell(), nil
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

// HostPids lists the processes of the host that stand for the container's
// processes: the monitor, and one for each exec. QEMU and virtiofsd are not among
// them. A stopped container has none.
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
	conn, _, err := c.dial(req)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial is dialControl to the monitor that owns the container's VM.
func (c *Container) dial(req controlRequest) (*net.UnixConn, controlReply, error) {
	if s := c.Sandbox; s != nil {
		if !alive(s.Pid, s.PidStart) {
			return nil, controlReply{}, ErrNotRunning
		}
		req.Member = c.ID
	}
	return dialControl(c.monitorDir(), req)
}

// monitorDir is where that monitor has its socket, and the guest's console is.
func (c *Container) monitorDir() string {
	if c.Sandbox != nil {
		return filepath.Join(c.rt.Root, c.Sandbox.ID)
	}
	return c.dir
}

// member is the container's name in requests to that monitor.
func (c *Container) member() string {
	if c.Sandbox != nil {
		return c.ID
	}
	return ""
}
