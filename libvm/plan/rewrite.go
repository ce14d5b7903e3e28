package plan

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/devicefilter"
	"github.com/boxlite-oci/boxlite/libvm/seccomp"
)

// Rewrite turns a bundle's spec into the guest spec and the shape of the VM. It
// reads nothing but its arguments and changes none of them: host holds all
// that is to be known of the host, rootfs is the absolute path of root.path.
func Rewrite(spec *specs.Spec, rootfs string, host *HostFacts, over Overrides) (*Plan, error) {
	guest, err := CopySpec(spec)
	if err != nil {
		return nil, err
	}
	p := &Plan{Guest: guest, KernelParameters: host.KernelParameters, OOMScoreFloor: host.mayExceedLimits()}
	if err := p.shape(spec, host, over); err != nil {
		return nil, err
	}
	if host.Pod != nil {
		if err := p.join(spec, host.Pod, over); err != nil {
			return nil, err
		}
	}
	p.root(rootfs, host)
	p.process(host)
	p.namespaces()
	if err := p.userNamespace(host); err != nil {
		return nil, err
	}
	if err := p.allowSockets(spec.Annotations, over); err != nil {
		return nil, err
	}
	if err := p.mounts(host); err != nil {
		return nil, err
	}
	if err := p.scratch(spec.Annotations[AnnotationScratch], over.Scratch); err != nil {
		return nil, err
	}
	p.devices(host)
	p.tracing()
	if p.Shape.Privileged {
		if err := p.privilege(spec.Annotations, host.WithheldCapabilities); err != nil {
			return nil, err
		}
	} else if r := p.Guest.Linux.Resources; r != nil && len(r.Devices) > 0 {
		if p.DeviceFilter, err = devicefilter.Compile(r.Devices); err != nil {
			return nil, err
		}
	}
	if err := p.seccomp(); err != nil {
		return nil, err
	}
	p.Nodes = MakesNodes(p.Guest)
	p.hostOnly(spec)
	return p, nil
}

// seccomp compiles the filter, here: the guest may be emulated.
func (p *Plan) seccomp() error {
	s := p.Guest.Linux.Seccomp
	if s == nil {
		return nil
	}
	p.Guest.Linux.Seccomp = nil
	filter, err := seccomp.Compile(s)
	if err != nil {
		return fmt.Errorf("linux.seccomp: %w", err)
	}
	if filter != nil {
		p.Seccomp = &guestproto.SeccompFilter{Program: filter.Encode(), Flags: filter.Flags}
	}
	return nil
}

// CopySpec is a copy that shares nothing with spec.
func CopySpec(spec *specs.Spec) (*specs.Spec, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	c := new(specs.Spec)
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, err
	}
	if c.Linux == nil {
		c.Linux = new(specs.Linux)
	}
	return c, nil
}

// process takes out of the process object what only the host applies, and the
// capabilities that no kernel of ours knows. It adds the limits that the process
// inherits.
func (p *Plan) process(host *HostFacts) {
	if p.Guest.Process == nil {
		return
	}
	p.Warnings = append(p.Warnings, GuestProcess(p.Guest.Process)...)
	InheritRlimits(p.Guest.Process, host.Rlimits)
}

// GuestProcess makes a process object, of config.json or of an exec, fit for
// the guest, and returns warnings about what it took out.
func GuestProcess(proc *specs.Process) (warnings []string) {
	proc.SelinuxLabel = "" // the guest has no SELinux; the label holds for the VM's processes on the host
	if proc.ApparmorProfile != "" && proc.ApparmorProfile != "unconfined" {
		warnings = append(warnings, fmt.Sprintf("AppArmor profile %q does not reach into the VM and is left out", proc.ApparmorProfile))
	}
	proc.ApparmorProfile = ""
	if proc.Capabilities != nil {
		warnings = append(warnings, dropUnknownCapabilities(proc.Capabilities)...)
		trimAmbient(proc.Capabilities)
	}
	return warnings
}

// namespaces keeps the types that make sense inside the VM. A path names a namespace
// of the host's kernel: the nearest thing is a new namespace in the guest. Two types
// are the VM's own, which nobody shares with the container: the network, and the
// time if there are no offsets. Docker 29.5 and later asks for such a time namespace
// each time, and the guest has an init forked ahead for containers without one.
func (p *Plan) namespaces() {
	keep := p.Guest.Linux.Namespaces[:0]
	for _, ns := range p.Guest.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			continue
		}
		if _, joined := p.Joins[ns.Type]; ns.Path != "" && ns.Type != specs.MountNamespace && !joined {
			p.Warnf("%s namespace %s belongs to the host's kernel: the container gets one of its own", ns.Type, ns.Path)
		}
		if ns.Type == specs.TimeNamespace && len(p.Guest.Linux.TimeOffsets) == 0 {
			continue
		}
		ns.Path = ""
		keep = append(keep, ns)
	}
	p.Guest.Linux.Namespaces = keep
}

// userNamespace counts the ids of the guest's user namespace from those that
// virtiofsd sees. For an ordinary user that is the monitor's user namespace,
// where the user is root and nobody else exists.
func (p *Plan) userNamespace(host *HostFacts) error {
	if host.UID == 0 {
		return nil
	}
	l := p.Guest.Linux
	for _, m := range []struct {
		kind     string
		own      uint32
		mappings []specs.LinuxIDMapping
	}{{"uid", host.UID, l.UIDMappings}, {"gid", host.GID, l.GIDMappings}} {
		for i := range m.mappings {
			if m.mappings[i].HostID != m.own || m.mappings[i].Size != 1 {
				return fmt.Errorf("%s mapping of host id %d, size %d: without root only %d, size 1, can be mapped", m.kind, m.mappings[i].HostID, m.mappings[i].Size, m.own)
			}
			m.mappings[i].HostID = 0
		}
	}
	return nil
}

// hostOnly takes out what is done on the host or has no meaning in the guest.
func (p *Plan) hostOnly(spec *specs.Spec) {
	g := p.Guest
	g.Hooks = nil
	g.VM = nil
	if hooks := Hooks(spec).StartContainer; len(hooks) > 0 {
		g.Hooks = &specs.Hooks{StartContainer: hooks} // the others are the host's
	}
	g.Linux.CgroupsPath = ""
	g.Linux.MountLabel = ""
	g.Linux.Resources = GuestResources(g.Linux.Resources, p.Shape.VCPUs) // the device filter has its devices
}
