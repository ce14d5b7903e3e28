package plan

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/kernels"
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
	case p.Shape.Kernel == kernels.Net && pod.Shape.Kernel != kernels.Net:
		return fmt.Errorf("the VM of the pod has the kernel %s, and the container needs %s (%s): give the pod's sandbox, %s, the annotation %s=%s",
			pod.Shape.Kernel, kernels.Net, p.Shape.KernelReason, pod.Sandbox, AnnotationKernel, kernels.Net)
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
