package libvm

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// Start runs the container's process. It returns when the guest has executed
// it and the poststart hooks have run. A start that fails ends the container, and
// a poststart hook that does deletes it.
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
			if killErr := c.kill(); killErr != nil {
				return errors.Join(err, killErr)
			}
			return errors.Join(err, c.remove()) // as runc: the poststop hooks have run too
		}
		return nil
	})
}

// askToStart has the monitor start the process, and writes down that it runs. The
// monitor hears that, or else ends the container.
func (c *Container) askToStart() error {
	asked := c.rt.Trace.Begin("start: ask the monitor")
	conn, reply, err := c.dial(controlRequest{Op: controlStart, Trace: c.rt.Trace != nil})
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
	return fmt.Errorf("%w%s", err, consoleTail(c.monitorDir()))
}
