package libvm

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"

	"boxlite/libvm/accel"
	"boxlite/libvm/parts"
	"boxlite/libvm/template"
)

// templatesFor is the store for a container, or empty if its VM shall boot.
func (r *Runtime) templatesFor(spec *specs.Spec) (dir string, err error) {
	switch value := spec.Annotations[AnnotationTemplate]; value {
	case "", "auto":
		return r.TemplateDir, nil
	case "off":
		return "", nil
	default:
		return "", fmt.Errorf("annotation %s=%q: auto or off", AnnotationTemplate, value)
	}
}

// Factory makes VMs: of what parts, with which accelerator, and where the VMs are
// that it copies.
type Factory struct {
	// Parts says where to look for QEMU, virtiofsd, kernels and the initramfs.
	Parts parts.Options
	// Accel is auto, kvm or tcg; empty is auto.
	Accel string
	// TemplateDir keeps saved VMs to start from. If it is empty every VM boots.
	TemplateDir string
	// TurnFile is where the starts of emulated VMs take turns.
	TurnFile string
	// SelfArgs are the global flags with which the program is started again to
	// call RunKeeper ("standby-keeper").
	SelfArgs []string
	// Log takes decisions at level debug and what was survived at level warn.
	Log *slog.Logger
}

// CreateTemplate boots a VM and saves it, unless there is such a template
// already. Of the shape, MemoryMiB and VCPUs may be zero for what a container
// without limits gets.
func (f *Factory) CreateTemplate(shape Shape) (key string, err error) {
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

// starter is for a VM without a container. Zeroes of the shape are what a
// container without limits gets.
func (f *Factory) starter(shape Shape) (*vmStarter, error) {
	if shape.MemoryMiB == 0 {
		shape.MemoryMiB = defaultMemoryMiB
	}
	if shape.VCPUs == 0 {
		shape.VCPUs = runtime.NumCPU()
	}
	if err := checkMemory(shape.MemoryMiB); err != nil {
		return nil, err
	}
	found, err := parts.Find(f.Parts)
	if err != nil {
		return nil, err
	}
	kernel, err := found.Kernel(shape.Kernel)
	if err != nil {
		return nil, err
	}
	acc, _, err := accel.Resolve(f.Accel)
	if err != nil {
		return nil, err
	}
	return &vmStarter{
		parts: found,
		cfg:   newVMConfig(found, acc, kernel, shape, false),
		// QEMU's root is mounted over the store for QEMU alone to see, so that
		// no other directory has to be made and removed.
		files: vmmFiles{root: f.TemplateDir, console: &tailBuffer{limit: 4 << 10}},
		log:   f.Log,
	}, nil
}

// make boots a VM to be saved and ends it.
func (s *vmStarter) make(store *template.Store, id template.Identity) error {
	draft, err := store.Begin(id)
	if err != nil {
		return err
	}
	v, err := startVMM(s.parts, s.cfg, s.files, nil, s.steps, s.log)
	if err == nil {
		defer v.close()
		err = s.awaitGuest(v)
	}
	if err == nil {
		err = v.save(draft)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w (guest console: %q)", err, s.files.console), draft.Discard())
	}
	return draft.Commit()
}
