package libvm

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// Delete removes a stopped or created container: cgroup, state and what is left
// of its network. With force it ends a running one first, and one that is gone is no
// error. Poststop hooks run at the end; their failure is a warning.
func (c *Container) Delete(force bool) error {
	if force && c.Status() != specs.StateStopped {
		// Not behind the lock: who holds it may be waiting for the guest.
		if err := c.kill(); err != nil {
			return err
		}
	}
	err := c.locked(func() error {
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
	if force && errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// remove takes away what is left of a container whose monitor has ended: cgroup,
// what is in a network namespace that outlives it or in the VM of its pod, state dir. Then the poststop hooks
// run. What could not be taken away is an error, and keeps the rest in place for
// another try.
func (c *Container) remove() error {
	if err := c.destroyCgroup(); err != nil {
		return err
	}
	c.restoreNetwork()
	if c.Sandbox != nil {
		c.leavePod()
	}
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

// DeleteRemains removes what a killed create has left of the container id. It is
// for delete --force where Load fails, and is no error if nothing is there.
func (r *Runtime) DeleteRemains(id string) error {
	dir, err := stateDir(r.Root, id)
	if err != nil {
		return err
	}
	unlock, err := lock(dir)
	if errors.Is(err, ErrNotExist) {
		return nil // nothing, not ours, or removed by another delete
	}
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
