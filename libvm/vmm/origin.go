package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/qmp"
	"github.com/boxlite-oci/boxlite/libvm/template"
)

// Starter starts the VM of a container, or the VM that becomes a template.
type Starter struct {
	Parts  *parts.Parts
	Config Config
	Files  Files
	// Standby allows Start to take a standby VM.
	Standby bool
	Steps   *trace.Recorder // nil if nobody asked
	Log     *slog.Logger
}

// Origin says where a VM has come from.
type Origin struct {
	// Template is the key of the template that the VM is a copy of. It is empty if
	// the VM has booted.
	Template string
	// Reason says why the VM has booted. It is empty otherwise.
	Reason string
	// Warning is what was wrong with the templates, if anything was.
	Warning string
	// Taken says which standby VM it was. It is nil if the VM was started for the
	// container.
	Taken *Handover
}

// String is for the log.
func (o Origin) String() string {
	switch {
	case o.Taken != nil:
		return fmt.Sprintf("standby VM of keeper %d, copy of template %s", o.Taken.Keeper, o.Template)
	case o.Template != "":
		return "copy of template " + o.Template
	}
	return "boot: " + o.Reason
}

// NewConfig is the VM that found, a kernel and a shape make. Verbose has the
// kernel say how it boots.
func NewConfig(found *parts.Parts, acc accel.Accel, kernel string, shape plan.Shape, verbose bool) Config {
	return Config{
		accel: acc, firmware: found.Firmware, kernel: kernel, initramfs: found.Initramfs,
		memoryMiB: shape.MemoryMiB, growthMiB: hostMemoryMiB(), vcpus: shape.VCPUs, machine: shape.Machine, verbose: verbose,
	}
}

// Start returns a VM that holds nothing of a container yet. The VM is a standby VM
// if that is allowed and there is one, else a copy of a template in dir, else one
// that boots. What is wrong with templates is never an error.
//
// A VM that boots for want of a template is saved as a template as soon as its
// guest is ready, and goes on. The alternative, a second VM in the background,
// would cost another boot on the same processors, beside the container that is just
// starting. It would also be a process that outlives create, and callers such as
// conmon wait for those.
func (s *Starter) Start(dir string) (*VM, Origin, error) {
	v, o, err := s.obtain(dir)
	if err == nil {
		v.letGoOfMemory() // QEMU and virtiofsd have it
	}
	return v, o, err
}

func (s *Starter) obtain(dir string) (*VM, Origin, error) {
	if dir == "" {
		return s.boot(Origin{Reason: "templates are switched off"})
	}
	if len(s.Config.machine.QEMUParameters) > 0 {
		return s.boot(Origin{Reason: "nobody knows whether a VM with QEMU parameters of its own can be saved"})
	}
	if s.Files.Scratch != nil {
		return s.boot(Origin{Reason: "a scratch disk is not part of a template"})
	}
	looked := s.Steps.Begin("look for a template")
	store, err := template.Open(dir, true)
	if err != nil {
		return s.boot(Origin{Reason: "templates cannot be used", Warning: fault.Quiet(err.Error())})
	}
	defer store.Close()
	id, err := s.identity()
	if err != nil {
		return nil, Origin{}, fault.Wrap("look at the VM's parts", err)
	}
	looked()
	if s.Standby {
		if v, taken := s.adopt(dir, id.Key()); v != nil {
			return v, Origin{Template: id.Key(), Taken: taken}, nil
		}
	}
	loaded := s.Steps.Begin("read the template")
	t, err := store.Load(id)
	loaded()
	if err == nil {
		var v *VM
		v, err = start(s.Parts, s.Config, s.Files, t, s.Steps, s.Log)
		_ = t.Close() // read-only
		if err == nil {
			return v, Origin{Template: t.Key}, nil
		}
	}
	o := Origin{Reason: template.ErrNone.Error()}
	if !errors.Is(err, template.ErrNone) {
		o.Reason = "the template is of no use"
		o.Warning = "cold start: " + fault.Quiet(err.Error())
		if err := store.Delete(id.Key()); err != nil {
			s.Log.Debug("delete template", "error", err)
		}
	}
	return s.bootAndSave(store, id, o)
}

// identity is that of the template that the VM could be a copy of.
func (s *Starter) identity() (template.Identity, error) {
	cfg := s.Config
	return template.NewIdentity(template.Identity{
		Args: cfg.args(), Kernel: cfg.kernel, VCPUs: cfg.vcpus, MemoryMiB: cfg.memoryMiB, Accel: cfg.accel.String(),
	}, s.Parts.QEMU, cfg.firmware, cfg.kernel, cfg.initramfs)
}

func (s *Starter) boot(o Origin) (*VM, Origin, error) {
	v, err := start(s.Parts, s.Config, s.Files, nil, s.Steps, s.Log)
	return v, o, err
}

func (s *Starter) bootAndSave(store *template.Store, id template.Identity, o Origin) (*VM, Origin, error) {
	draft, err := store.Begin(id)
	if errors.Is(err, template.ErrBusy) {
		o.Reason = err.Error()
		return s.boot(o)
	}
	if err != nil {
		o.Warning = fault.Quiet(err.Error())
		return s.boot(o)
	}
	v, err := start(s.Parts, s.Config, s.Files, nil, s.Steps, s.Log)
	if err == nil {
		err = s.awaitGuest(v)
	}
	if err != nil {
		_ = draft.Discard() // the boot's own error says more
		return v, o, err
	}
	began := time.Now()
	err = v.checkClock(s.Config.accel)
	if err != nil && !errors.Is(err, errClock) {
		_ = draft.Discard()
		return v, o, err
	}
	if err == nil {
		err = v.save(draft)
	}
	if err == nil {
		err = draft.Commit()
	} else {
		err = errors.Join(err, draft.Discard())
	}
	if err != nil {
		o.Warning = "save a template: " + fault.Quiet(err.Error())
	}
	s.Log.Debug("saved as a template", "key", draft.Key, "took", time.Since(began), "error", err)
	return v, o, nil
}

// awaitGuest is for a VM that nothing was said to yet.
func (s *Starter) awaitGuest(v *VM) error {
	timeout := v.BootTimeout()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := v.awaitGuest(ctx)
	switch {
	case errors.Is(err, qmp.ErrEnded):
		return ErrLost
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("guest: %w within %s", ErrNoAnswer, timeout)
	}
	return err
}
