package plan

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/kernels"
)

const (
	DefaultMemoryMiB = 1024
	// GuestRoomMiB is what the guest's kernel, guestinit and the page tables of
	// the VM's memory take beside the container's own limit.
	GuestRoomMiB = 128
	minMemoryMiB = 192
	// maxMemoryMiB keeps a number of bytes within what arithmetic here and QEMU bear.
	maxMemoryMiB = math.MaxInt32
	// noMemoryLimit is what cgroup v1 says of memory without a limit, whole pages of
	// 4 KiB; callers on such hosts give it back.
	noMemoryLimit = math.MaxInt64 &^ 4095
	// memoryStepMiB is what a VM's memory is rounded up to, so that containers
	// with about the same limit share a template. The guest's cgroup holds the
	// limit itself.
	memoryStepMiB = 64
)

// shape decides the VM's size, kernel and privilege.
func (p *Plan) shape(spec *specs.Spec, host *HostFacts, over Overrides) error {
	caps := allCapabilities(spec.Process)
	p.Shape.Privileged = slices.Contains(caps, "CAP_SYS_ADMIN")
	kernel, reason, err := kernels.Select(needsOf(spec, caps, host), spec.Annotations[AnnotationKernel], over.Kernel)
	if err != nil {
		return err
	}
	p.Shape.Kernel, p.Shape.KernelReason = kernel, reason

	unlimited := DefaultMemoryMiB
	if limits(host.PodMemoryLimit) {
		unlimited = minMemoryMiB // all members have limits, and bring room for that; more would not fit into the pod's
	}
	memory, vcpus := sizeOf(spec, unlimited, host.CPUs)
	if host.PodCPUs > 0 { // as for a container's own limit
		vcpus = min(vcpus, host.PodCPUs)
	}
	if host.MemoryMiB > minMemoryMiB { // a limit above what there is limits nothing, as with runc
		memory = min(memory, host.MemoryMiB/memoryStepMiB*memoryStepMiB)
	}
	if vm := spec.VM; vm != nil {
		p.Shape.Machine = Machine{
			QEMU: vm.Hypervisor.Path, QEMUParameters: vm.Hypervisor.Parameters,
			KernelParameters: vm.Kernel.Parameters,
		}
		if over.Kernel == "" {
			p.Shape.Machine.Kernel, p.Shape.KernelReason = vm.Kernel.Path, "vm.kernel in config.json"
		}
		if hw := vm.HwConfig; hw != nil {
			if hw.Memory != nil {
				memory = int(min(*hw.Memory>>20, maxMemoryMiB))
			}
			if hw.VCPUs != nil {
				vcpus = int(*hw.VCPUs)
			}
		}
	}
	if p.Shape.MemoryMiB, err = override(memory, spec.Annotations, AnnotationMemory, over.MemoryMiB); err != nil {
		return err
	}
	if err := CheckMemory(p.Shape.MemoryMiB); err != nil {
		return err
	}
	if host.MemoryMiB > 0 && p.Shape.MemoryMiB > host.MemoryMiB {
		return fmt.Errorf("VM memory of %d MiB: this machine has %d with swap: ask for less (--vm-memory, annotation %s, vm.hwConfig)", p.Shape.MemoryMiB, host.MemoryMiB, AnnotationMemory)
	}
	if p.Shape.VCPUs, err = override(vcpus, spec.Annotations, AnnotationVCPUs, over.VCPUs); err != nil {
		return err
	}
	return nil
}

// needsOf says what the container needs of the guest's kernel.
func needsOf(spec *specs.Spec, caps []string, host *HostFacts) kernels.Needs {
	needs := kernels.Needs{Capabilities: caps, Full: host.FullKernel}
	if spec.Linux != nil {
		needs.Sysctls = spec.Linux.Sysctl
		for _, d := range spec.Linux.Devices {
			needs.Devices = append(needs.Devices, deviceKey(d))
		}
	}
	return needs
}

// CheckMemory returns an error for a memory size that no VM can have.
func CheckMemory(mib int) error {
	if mib < minMemoryMiB {
		return fmt.Errorf("VM memory of %d MiB: at least %d are needed", mib, minMemoryMiB)
	}
	if mib > maxMemoryMiB {
		return fmt.Errorf("VM memory of %d MiB: at most %d are possible", mib, maxMemoryMiB)
	}
	return nil
}

// sizeOf derives the VM's size from the container's limits. Without one of memory it is
// unlimitedMiB.
func sizeOf(spec *specs.Spec, unlimitedMiB, hostCPUs int) (memoryMiB, vcpus int) {
	memoryMiB, vcpus = unlimitedMiB, hostCPUs
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return memoryMiB, vcpus
	}
	if m := spec.Linux.Resources.Memory; m != nil && m.Limit != nil && limits(*m.Limit) {
		memoryMiB = vmMemoryMiB(*m.Limit)
	}
	c := spec.Linux.Resources.CPU
	if c != nil && countCPUs(c.Cpus) > 0 {
		vcpus = min(vcpus, countCPUs(c.Cpus))
	}
	if c != nil && c.Quota != nil && *c.Quota > 0 {
		period := uint64(100000) // the kernel's default cfs period, in microseconds
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		vcpus = min(vcpus, int((uint64(*c.Quota)+period-1)/period))
	}
	return memoryMiB, min(max(vcpus, 1), hostCPUs)
}

// limits says that a memory limit of so many bytes is one.
func limits(bytes int64) bool { return bytes > 0 && bytes < noMemoryLimit }

// vmMemoryMiB is the size of the VM for a container limited to limit bytes.
func vmMemoryMiB(limit int64) int {
	need := int((limit-1)>>20) + 1 + GuestRoomMiB
	return max((need+memoryStepMiB-1)/memoryStepMiB*memoryStepMiB, minMemoryMiB)
}

// override applies an annotation and then a flag over a derived value.
func override(derived int, annotations map[string]string, name string, flag int) (int, error) {
	if flag > 0 {
		return flag, nil
	}
	text, ok := annotations[name]
	if !ok {
		return derived, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("annotation %s=%q: want a whole number above zero", name, text)
	}
	return n, nil
}
