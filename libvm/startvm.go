package libvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"boxlite/internal/trace"
	"boxlite/libvm/accel"
	"boxlite/libvm/parts"
	"boxlite/libvm/qmp"
	"boxlite/libvm/template"
)

// vmStarter starts the VM of a container or of a template to be.
type vmStarter struct {
	parts *parts.Parts
	cfg   vmConfig
	files vmmFiles
	// standby allows for a VM that is ready already.
	standby bool
	steps   *trace.Recorder // nil if nobody asked
	log     *slog.Logger
}

// origin is where a VM has come from.
type origin struct {
	// template is the key of the template it is a copy of; empty if it has
	// booted.
	template string
	// reason says why it has booted.
	reason string
	// warning is what was wrong with the templates, if anything was.
	warning string
	// taken is the standby VM that it was; nil if it was started for the
	// container.
	taken *handover
}

// newVMConfig is the VM that found, a kernel and a shape make. Verbose has the
// kernel say how it boots.
func newVMConfig(found *parts.Parts, acc accel.Accel, kernel string, shape Shape, verbose bool) vmConfig {
	return vmConfig{
		accel: acc, firmware: found.Firmware, kernel: kernel, initramfs: found.Initramfs,
		memoryMiB: shape.MemoryMiB, growthMiB: hostMemoryMiB(), vcpus: shape.VCPUs, machine: shape.Machine, verbose: verbose,
	}
}

// start gives a VM that holds nothing of a container yet: a copy of a template
// in dir, else one that boots. What is wrong with templates is never an error.
//
// The VM that boots for want of a template is saved as one as soon as its guest
// is ready, and goes on. A second VM in the background would cost another boot
// on the same processors, beside the container that is just starting, and would
// be a process that outlives create: callers such as conmon wait for all of
// those.
func (s *vmStarter) start(dir string) (*vmm, origin, error) {
	v, o, err := s.obtain(dir)
	if err == nil {
		v.letGoOfMemory() // QEMU and virtiofsd have it
	}
	return v, o, err
}

func (s *vmStarter) obtain(dir string) (*vmm, origin, error) {
	if dir == "" {
		return s.boot(origin{reason: "templates are switched off"})
	}
	if len(s.cfg.machine.QEMUParameters) > 0 {
		return s.boot(origin{reason: "nobody knows whether a VM with QEMU parameters of its own can be saved"})
	}
	if s.files.scratch != nil {
		return s.boot(origin{reason: "a scratch disk is not part of a template"})
	}
	looked := s.steps.Begin("look for a template")
	store, err := template.Open(dir, true)
	if err != nil {
		return s.boot(origin{reason: "templates cannot be used", warning: quiet(err.Error())})
	}
	defer store.Close()
	id, err := s.identity()
	if err != nil {
		return nil, origin{}, partError("look at the VM's parts", err)
	}
	looked()
	if s.standby {
		if v, taken := s.adopt(dir, id.Key()); v != nil {
			return v, origin{template: id.Key(), taken: taken}, nil
		}
	}
	loaded := s.steps.Begin("read the template")
	t, err := store.Load(id)
	loaded()
	if err == nil {
		var v *vmm
		v, err = startVMM(s.parts, s.cfg, s.files, t, s.steps, s.log)
		_ = t.Close() // read-only
		if err == nil {
			return v, origin{template: t.Key}, nil
		}
	}
	o := origin{reason: template.ErrNone.Error()}
	if !errors.Is(err, template.ErrNone) {
		o.reason = "the template is of no use"
		o.warning = "cold start: " + quiet(err.Error())
		if err := store.Delete(id.Key()); err != nil {
			s.log.Debug("delete template", "error", err)
		}
	}
	return s.bootAndSave(store, id, o)
}

// identity is that of the template that the VM could be a copy of.
func (s *vmStarter) identity() (template.Identity, error) {
	cfg := s.cfg
	return template.NewIdentity(template.Identity{
		Args: cfg.args(), Kernel: cfg.kernel, VCPUs: cfg.vcpus, MemoryMiB: cfg.memoryMiB, Accel: cfg.accel.String(),
	}, s.parts.QEMU, cfg.firmware, cfg.kernel, cfg.initramfs)
}

func (s *vmStarter) boot(o origin) (*vmm, origin, error) {
	v, err := startVMM(s.parts, s.cfg, s.files, nil, s.steps, s.log)
	return v, o, err
}

func (s *vmStarter) bootAndSave(store *template.Store, id template.Identity, o origin) (*vmm, origin, error) {
	draft, err := store.Begin(id)
	if errors.Is(err, template.ErrBusy) {
		o.reason = err.Error()
		return s.boot(o)
	}
	if err != nil {
		o.warning = quiet(err.Error())
		return s.boot(o)
	}
	v, err := startVMM(s.parts, s.cfg, s.files, nil, s.steps, s.log)
	if err == nil {
		err = s.awaitGuest(v)
	}
	if err != nil {
		_ = draft.Discard() // the boot's own error says more
		return v, o, err
	}
	began := time.Now()
	if err = v.save(draft); err == nil {
		err = draft.Commit()
	} else {
		err = errors.Join(err, draft.Discard())
	}
	if err != nil {
		o.warning = "save a template: " + quiet(err.Error())
	}
	s.log.Debug("saved as a template", "key", draft.Key, "took", time.Since(began), "error", err)
	return v, o, nil
}

// awaitGuest is for a VM that nothing was said to yet.
func (s *vmStarter) awaitGuest(v *vmm) error {
	timeout := bootTimeout(s.cfg.accel)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := v.awaitGuest(ctx)
	switch {
	case errors.Is(err, qmp.ErrEnded):
		return errLost
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("guest: %w within %s", errNoAnswer, timeout)
	}
	return err
}
