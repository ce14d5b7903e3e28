package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/kernels"
)

// AnnotationSeccomp with the value "keep" means that the seccomp filter of
// config.json holds, whatever the capabilities. Without it a container with every
// capability may run without a filter; see unfilter.
const AnnotationSeccomp = "boxlite.seccomp"

// privilege gives the container its kernel: everything in it may be written.
func (p *Plan) privilege(annotations map[string]string, withheld map[string]bool) error {
	g := p.Guest
	g.Linux.MaskedPaths = nil
	g.Linux.ReadonlyPaths = nil
	for i := range g.Mounts {
		m := &g.Mounts[i]
		switch m.Type {
		case "sysfs", "cgroup2", "proc":
			m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" || o == "rro" })
			m.Options = append(m.Options, "rw")
		}
	}
	return p.unfilter(annotations[AnnotationSeccomp], withheld)
}

// tracingDirs are where a kernel that traces has its files.
var tracingDirs = []string{"/sys/kernel/tracing", "/sys/kernel/debug"}

// inTracingDirs says whether a path of the guest's is one of those, or below.
func inTracingDirs(path string) bool {
	return slices.ContainsFunc(tracingDirs, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
}

// hasTracing says whether the VM's kernel traces, as far as that is known.
func (p *Plan) hasTracing() bool {
	return p.Shape.Kernel == kernels.Full || p.Shape.Machine.Kernel != ""
}

// tracing shows the kernel's files for tracing to a container that may use them, if the VM
// has that kernel. A host's distribution mounts them for whoever is root there.
func (p *Plan) tracing() {
	if p.Shape.Kernel != kernels.Full || p.Shape.Machine.Kernel != "" || !kernels.Traces(allCapabilities(p.Guest.Process)) {
		return
	}
	sys := slices.IndexFunc(p.Guest.Mounts, func(m specs.Mount) bool { return m.Type == "sysfs" && m.Destination == "/sys" })
	if sys < 0 {
		return
	}
	for _, dir := range tracingDirs {
		p.Guest.Mounts = slices.Insert(p.Guest.Mounts, sys+1, specs.Mount{
			Destination: dir, Type: "bind", Source: dir, Options: []string{"rbind", "nosuid", "nodev", "noexec"},
		})
	}
}

// unfilter takes away a seccomp filter that lists the system calls it allows,
// if the container has every capability that it could be given. Engines give such a list to each
// container, and Docker's lacks calls (pivot_root, keyctl) without which no
// runc works inside, because on a shared kernel they endanger the host. A filter
// that lists what it forbids is nobody's default, and stays.
func (p *Plan) unfilter(keep string, withheld map[string]bool) error {
	if keep != "" && keep != "keep" {
		return fmt.Errorf("annotation %s=%q: valid is \"keep\"", AnnotationSeccomp, keep)
	}
	filter := p.Guest.Linux.Seccomp
	if filter == nil || keep != "" || filter.DefaultAction == specs.ActAllow || filter.DefaultAction == specs.ActLog || !hasAll(p.Guest.Process, withheld) {
		return nil
	}
	p.Guest.Linux.Seccomp = nil
	p.Warnf("seccomp: the list of allowed system calls does not hold with every capability (annotation %s=keep has it hold)", AnnotationSeccomp)
	return nil
}

// hasAll says that the process is given every capability but those withheld, and
// CAP_SYS_ADMIN at least. The three that came with Linux 5.8 and 5.9 are not asked
// for: an engine's ALL is what it and the host's kernel know.
func hasAll(proc *specs.Process, withheld map[string]bool) bool {
	if proc == nil || proc.Capabilities == nil || withheld["CAP_SYS_ADMIN"] {
		return false
	}
	for name := range knownCapabilities {
		switch name {
		case "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE":
		default:
			if !withheld[name] && !slices.Contains(proc.Capabilities.Bounding, name) {
				return false
			}
		}
	}
	return true
}
