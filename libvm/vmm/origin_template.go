package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/template"
)

// A VM is saved with QEMU's migration, to a pipe instead of another host, and
// with x-ignore-shared: the memory, which is shared with other processes, stays
// out of the stream and is copied as a file. What remains is the state of the
// devices, some 300 KiB.

// maxDeviceState bounds the state that a new VM gives, in bytes.
const maxDeviceState = 16 << 20

// awaitGuest waits until guestinit has opened its end of the control port, which
// it does when the guest is ready.
func (v *VM) awaitGuest(ctx context.Context) error {
	// Before the monitor was there to listen, on a busy host, the event is lost.
	var chardevs []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := v.qmp.Execute(ctx, "query-chardev", nil, &chardevs); err != nil {
		return err
	}
	for _, c := range chardevs {
		if c.Label == controlID && c.Open {
			return nil
		}
	}
	return v.awaitEvent(ctx, "VSERPORT_CHANGE", func(data json.RawMessage) bool {
		var port struct {
			ID   string `json:"id"`
			Open bool   `json:"open"`
		}
		return json.Unmarshal(data, &port) == nil && port.ID == controlID && port.Open
	})
}

func (v *VM) awaitEvent(ctx context.Context, name string, match func(json.RawMessage) bool) error {
	for {
		select {
		case ev, ok := <-v.qmp.Events():
			if !ok {
				return fmt.Errorf("wait for %s: %w", name, v.qmp.Err())
			}
			if ev.Name == name && match(ev.Data) {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", name, ctx.Err())
		}
	}
}

// save writes the VM, which stands still meanwhile, into a draft. The VM goes on
// afterwards, also if saving it has failed.
func (v *VM) save(d *template.Draft) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if err := v.qmp.Execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, v.qmp.Execute(ctx, "cont", nil, nil))
	}()
	state, err := v.deviceState(ctx)
	if err != nil {
		return err
	}
	if err := d.SetState(state); err != nil {
		return err
	}
	return d.SetMemory(v.memory)
}

// deviceState has the stopped VM migrate into a pipe.
func (v *VM) deviceState(ctx context.Context) ([]byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	err = v.qmp.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": "template"}, nil, w)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	if err := v.enableMigration(ctx); err != nil {
		return nil, err
	}
	if err := v.qmp.Execute(ctx, "migrate", map[string]any{"uri": "fd:template"}, nil); err != nil {
		return nil, err
	}
	// QEMU closes the pipe when all is written and the VM is fit to go on.
	state, err := io.ReadAll(io.LimitReader(r, maxDeviceState))
	if err != nil {
		return nil, err
	}
	var migration struct {
		Status string `json:"status"`
		Desc   string `json:"error-desc"`
	}
	if err := v.qmp.Execute(ctx, "query-migrate", nil, &migration); err != nil {
		return nil, err
	}
	if migration.Status != "completed" {
		return nil, fmt.Errorf("QEMU's migration: %s %s", migration.Status, migration.Desc)
	}
	return state, nil
}

// enableMigration leaves shared memory out, and has QEMU report its progress.
func (v *VM) enableMigration(ctx context.Context) error {
	var on []any
	for _, name := range []string{"x-ignore-shared", "events"} {
		on = append(on, map[string]any{"capability": name, "state": true})
	}
	return v.qmp.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": on}, nil)
}

// load loads the state of a saved VM, whose memory is in place already. The VM
// stands still afterwards.
func (v *VM) load(state []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(state)
		written <- errors.Join(err, w.Close())
	}()
	err = v.qmp.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": "template"}, nil, r)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if err := v.enableMigration(ctx); err != nil {
		return err
	}
	if err := v.qmp.Execute(ctx, "migrate-incoming", map[string]any{"uri": "fd:template"}, nil); err != nil {
		return err
	}
	err = v.awaitEvent(ctx, "MIGRATION", func(data json.RawMessage) bool {
		var progress struct {
			Status string `json:"status"`
		}
		return json.Unmarshal(data, &progress) == nil && progress.Status == "completed"
	})
	if err != nil {
		return fmt.Errorf("load the VM's state: %w%s", err, v.qemu.lastWords(reapGrace))
	}
	return <-written
}

// standstillTimeout bounds how long QEMU takes to stop its processors or let them
// go on, of a container that runs. One that does not is lost, or in other hands.
const standstillTimeout = 20 * time.Second

// Halt stops the VM's processors.
func (v *VM) Halt() error { return v.execute("stop", standstillTimeout) }

// Resume undoes Halt.
func (v *VM) Resume() error { return v.execute("cont", standstillTimeout) }

// proceed has a VM go on that stands still.
func (v *VM) proceed() error { return v.execute("cont", commandTimeout) }

func (v *VM) execute(command string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return v.qmp.Execute(ctx, command, nil, nil)
}

// commandTimeout bounds what QEMU is asked for while many VMs may start on few
// processors.
const commandTimeout = 90 * time.Second

// CreateTemplate boots a VM of the given shape and saves it, unless there is such a
// template already. A zero MemoryMiB or VCPUs means what a container without limits
// gets. It returns the template's key.
func (f *Factory) CreateTemplate(shape plan.Shape) (key string, err error) {
	if f.TemplateDir == "" {
		return "", errors.New("templates are switched off")
	}
	starter, err := f.starter(shape)
	if err != nil {
		return "", err
	}
	id, err := starter.identity()
	if err != nil {
		return "", err
	}
	store, err := template.Open(f.TemplateDir, true)
	if err != nil {
		return "", err
	}
	defer store.Close()
	t, err := store.Load(id)
	if err == nil {
		return t.Key, t.Close()
	}
	if !errors.Is(err, template.ErrNone) {
		f.Log.Warn("making it anew", "error", err)
		if err := store.Delete(id.Key()); err != nil {
			return "", err
		}
	}
	return id.Key(), starter.make(store, id)
}

// make boots a VM to be saved and ends it.
func (s *Starter) make(store *template.Store, id template.Identity) error {
	draft, err := store.Begin(id)
	if err != nil {
		return err
	}
	v, err := start(s.Parts, s.Config, s.Files, nil, s.Steps, s.Log)
	if err == nil {
		defer v.Close()
		err = s.awaitGuest(v)
	}
	if err == nil {
		err = v.checkClock(s.Config.accel)
	}
	if err == nil {
		err = v.save(draft)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w (guest console: %q)", err, s.Files.Console), draft.Discard())
	}
	return draft.Commit()
}
