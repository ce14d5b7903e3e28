// Package plan decides what boxlite makes of a bundle's config.json: the spec for
// the guest, the shape of the VM, and what the share holds. The package is pure,
// except for two functions that read the host: LoadSpec and LookAtHost. It never
// changes anything.
//
// validate.go says what is refused, facts.go what may be known of the host.
// rewrite.go, and the files that it calls, rewrite the spec.
package plan

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/kernels"
)

// Annotations of config.json that shape the VM. A flag of the same name, where
// there is one, wins over the annotation.
const (
	AnnotationKernel = kernels.Annotation // lean, net or full
	AnnotationMemory = "boxlite.memory"   // MiB of the VM, the guest kernel's own included
	AnnotationVCPUs  = "boxlite.vcpus"
	// AnnotationTemplate is auto, or off to boot the VM where --template would
	// have it start from a template.
	AnnotationTemplate = "boxlite.template"
	// AnnotationHostSockets is on, or off to have binds of the host's sockets show
	// inodes alone. A flag that says off wins.
	AnnotationHostSockets = "boxlite.host-sockets"
)

// Overrides are what flags say of the VM's shape. Zero values leave the choice to
// annotations and config.json.
type Overrides struct {
	Kernel    string
	MemoryMiB int
	VCPUs     int
	Scratch   string // as AnnotationScratch
	// NoHostSockets is what AnnotationHostSockets says with off.
	NoHostSockets bool
}

// Shape is what the VM of a container looks like.
type Shape struct {
	// Privileged says that the container holds CAP_SYS_ADMIN and so gets
	// writable /sys, /proc/sys and cgroups, and no masked paths.
	Privileged   bool           `json:"privileged"`
	Kernel       kernels.Kernel `json:"kernel"`
	KernelReason string         `json:"kernelReason"`
	MemoryMiB    int            `json:"memoryMiB"`
	VCPUs        int            `json:"vcpus"`
	// Machine is what config.json's vm object says of the VM's parts.
	Machine Machine `json:"machine,omitzero"`
}

// Machine is the choice of hypervisor and kernel in config.json's vm object
// (config-vm.md of the runtime spec). An empty field leaves the choice to boxlite.
type Machine struct {
	QEMU             string   // path of a QEMU
	QEMUParameters   []string // after boxlite's own
	Kernel           string   // path of a vmlinux
	KernelParameters []string // after boxlite's own
}

// Bind is a host directory or file that the share shows to the guest at
// Name below guestproto.ShareDir.
type Bind struct {
	Name   string
	Source string
	// Overlay, if not empty, has an overlay with these options made in place of
	// a bind mount. Source is then its name: where the container has it.
	Overlay  string `json:",omitempty"`
	ReadOnly bool
	// Recursive takes the mounts below Source along, and ReadOnlyBelow makes them
	// read-only too.
	Recursive     bool
	ReadOnlyBelow bool `json:",omitempty"`
	// Submounts are paths below Source of mounts that have attributes of their own in
	// the guest.
	Submounts []string `json:",omitempty"`
	// Follows has mounts that the host makes below Source later show, and go when they
	// go there.
	Follows bool `json:",omitempty"`
	// Volume is the bind's name among the volumes of a pod, which its members have in
	// common; empty for a bind of the container's own.
	Volume string `json:",omitempty"`
	// File says that Source is not a directory.
	File bool
}

// Plan is what Rewrite makes of a bundle's spec.
type Plan struct {
	Shape Shape
	// Guest is the spec that guestinit receives.
	Guest *specs.Spec
	// DeviceFilter holds the device rules in the guest, see package
	// devicefilter. It is empty for a privileged container and where no rule forbids.
	DeviceFilter []byte
	// Seccomp is the guest's filter, see package seccomp; nil for none.
	Seccomp *guestproto.SeccompFilter `json:",omitempty"`
	// KernelParameters are what the guest's kernel takes over from the host's.
	KernelParameters map[string]string `json:",omitempty"`
	// Scratch is nil for a container without such a disk.
	Scratch *Scratch `json:",omitempty"`
	// Sockets are those of the host that the container may connect to.
	Sockets HostSockets `json:",omitzero"`
	// OOMScoreFloor is that of guestproto.CreateRequest: the host's kernel makes a floor
	// of what a runtime with CAP_SYS_RESOURCE writes.
	OOMScoreFloor bool `json:",omitempty"`
	// Nodes says that device nodes are made in the share.
	Nodes bool `json:",omitempty"`
	// Binds fill the share, the container's rootfs first.
	Binds []Bind
	// Member is the container's name in the VM of its pod; empty for a VM of its own.
	// Then Binds fill that member's part of the share.
	Member string `json:",omitempty"`
	// Joins are those of guestproto.CreateRequest.
	Joins map[specs.LinuxNamespaceType]string `json:",omitempty"`
	// Warnings are for the log. They say what was asked for and left out, and why.
	Warnings []string
}

// Submounts are those of all binds, by the guest's path of the bind.
func (p *Plan) Submounts() map[string][]string {
	all := map[string][]string{}
	for _, b := range p.Binds {
		if len(b.Submounts) > 0 {
			all[p.GuestPath(b)] = b.Submounts
		}
	}
	return all
}

// RootfsName is the share's entry for the container's root file system.
const RootfsName = "rootfs"

// Warnf adds a warning for the log.
func (p *Plan) Warnf(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}
