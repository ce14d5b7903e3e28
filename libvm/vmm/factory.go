package vmm

import (
	"log/slog"
	"runtime"

	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// Factory makes VMs that do not belong to a container yet: templates, and VMs that
// stand by.
type Factory struct {
	// Parts says where to look for QEMU, virtiofsd, kernels and the initramfs.
	Parts parts.Options
	// Accel is auto, kvm or tcg; empty is auto.
	Accel string
	// TemplateDir is the directory of templates and of standby VMs. If it is empty,
	// every VM boots.
	TemplateDir string
	// TurnFile is where the starts of emulated VMs take turns.
	TurnFile string
	// SelfArgs are the global flags with which the program is started again to
	// call RunKeeper ("standby-keeper").
	SelfArgs []string
	// Log gets decisions at level debug, and at level warn what went wrong without
	// ending the call.
	Log *slog.Logger
}

// starter is for a VM without a container. Zeroes of the shape are what a
// container without limits gets.
func (f *Factory) starter(shape plan.Shape) (*Starter, error) {
	if shape.MemoryMiB == 0 {
		shape.MemoryMiB = plan.DefaultMemoryMiB
	}
	if shape.VCPUs == 0 {
		shape.VCPUs = runtime.NumCPU()
	}
	if err := plan.CheckMemory(shape.MemoryMiB); err != nil {
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
	return &Starter{
		Parts:  found,
		Config: NewConfig(found, acc, kernel, shape, false),
		// QEMU's root is mounted over the store for QEMU alone to see, so that
		// no other directory has to be made and removed.
		Files: Files{Root: f.TemplateDir, Console: &fault.Tail{Limit: 4 << 10}},
		Log:   f.Log,
	}, nil
}
