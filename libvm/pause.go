package libvm

import (
	"errors"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// StatePaused is the status that runc adds to the runtime spec's.
const StatePaused Status = "paused"

// A paused container's VM has its processors stopped: nothing of the container
// runs, and the guest's monotonic clock stands still with it. Monitor, QEMU and
// virtiofsd go on, idle; the host's cgroup is not frozen, so that the monitor
// can be asked and killed as ever.

// Pause stops the container, created or running, until Resume.
func (c *Container) Pause() error {
	return c.locked(func() error {
		switch c.Status() {
		case specs.StateCreated, specs.StateRunning:
		default:
			return ErrNotRunning
		}
		// The file first: should this process be killed, Resume finds its work.
		if err := c.setPaused(true); err != nil {
			return err
		}
		if err := c.request(controlRequest{Op: controlPause}); err != nil {
			return errors.Join(err, c.setPaused(false))
		}
		return nil
	})
}

// Resume undoes Pause.
func (c *Container) Resume() error {
	return c.locked(func() error {
		if c.Status() != StatePaused {
			return ErrNotPaused
		}
		if err := c.request(controlRequest{Op: controlResume}); err != nil {
			return err
		}
		return c.setPaused(false)
	})
}

func (c *Container) setPaused(paused bool) error {
	c.Paused = paused
	return writeState(c.dir, stateFile, &c.State)
}
