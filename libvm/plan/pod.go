package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// Pod is what a member has to know of the VM that it joins.
type Pod struct {
	// Sandbox is the id of the container whose VM it is, and Member is the name of the
	// new container there.
	Sandbox, Member string
	// Shape is the VM's.
	Shape Shape
	// Joins are the namespaces that are those of a container in the VM, see
	// guestproto.CreateRequest.
	Joins map[specs.LinuxNamespaceType]string
}

// join makes the plan one for a member of a pod. What is the VM's is what the pod has.
func (p *Plan) join(spec *specs.Spec, pod *Pod, over Overrides) error {
	switch {
	case spec.Process == nil:
		return errors.New("config.json has no process, which a member of a pod needs")
	case spec.VM != nil:
		return fmt.Errorf("vm: a member of a pod is in the VM of its sandbox, %s", pod.Sandbox)
	case spec.Annotations[AnnotationScratch] != "":
		return fmt.Errorf("annotation %s: a member of a pod is in the VM of its sandbox, %s, which has no disk for it", AnnotationScratch, pod.Sandbox)
	case over.Scratch != "":
		return errors.New("--scratch: a member of a pod has no disk of its own")
	case !pod.Shape.Kernel.Has(p.Shape.Kernel):
		return fmt.Errorf("the VM of the pod has the kernel %s, and the container needs %s (%s): give the pod's sandbox, %s, the annotation %s=%s",
			pod.Shape.Kernel, p.Shape.Kernel, p.Shape.KernelReason, pod.Sandbox, AnnotationKernel, p.Shape.Kernel)
	}
	p.Member, p.Joins = pod.Member, pod.Joins
	p.KernelParameters = nil // the sandbox has brought them
	p.Shape.Kernel, p.Shape.KernelReason, p.Shape.VCPUs = pod.Shape.Kernel, "the pod's", pod.Shape.VCPUs
	p.Shape.MemoryMiB = MemberMiB(Resources(spec))
	return nil
}

// MemberMiB is how much larger the VM of a pod has to be for a member with the limits r.
// Members without a limit have the VM's memory in common with each other.
func MemberMiB(r *specs.LinuxResources) int {
	if limit := MemoryLimit(r); limits(limit) {
		return int((limit-1)>>20) + 1
	}
	return 0
}

// joinShm has the shared memory be that of the container whose ipc namespace is joined.
func (p *Plan) joinShm(m *specs.Mount) {
	readOnly := slices.Contains(m.Options, "ro")
	m.Type, m.Source, m.Options = "bind", guestproto.JoinedShm, []string{"bind", "nosuid", "noexec", "nodev"}
	if readOnly {
		m.Options = append(m.Options, "ro")
	}
}

// volume makes a bind one of the pod's volumes, so that members with the same directory
// have the same files in the guest: sockets, locks and shared mappings meet there. Those
// that are read-only have not the same as those that are not, as the host holds them to
// it. Only an emptyDir of Kubernetes is writable on the host in any case, since it is the
// pod's, and the guest holds members to it.
//
// A bind that follows the host has a mirror in its container, and one with mounts below
// has them as that container asks: both stay the container's own.
func (p *Plan) volume(b *Bind, src Source) {
	if b.Follows || len(b.Submounts) > 0 {
		return
	}
	if strings.Contains(src.Path, emptyDir) {
		b.ReadOnly, b.ReadOnlyBelow = false, false
	}
	kind := "w"
	switch {
	case b.ReadOnlyBelow:
		kind = "rr"
	case b.ReadOnly:
		kind = "r"
	}
	if b.Recursive {
		kind += "b"
	}
	name := fmt.Sprintf("%x-%x-%s", src.Device, src.Inode, kind)
	if !slices.ContainsFunc(p.Binds, func(other Bind) bool { return other.Volume == name }) { // twice in a container is twice
		b.Volume = name
	}
}

// emptyDir is in the paths of such volumes, below the kubelet's directory of a pod.
const emptyDir = "/volumes/kubernetes.io~empty-dir/"

// Volumes are the names of the pod's volumes among the binds.
func (p *Plan) Volumes() (names []string) {
	for _, b := range p.Binds {
		if b.Volume != "" {
			names = append(names, b.Volume)
		}
	}
	return names
}
