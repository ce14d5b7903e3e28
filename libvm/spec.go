package libvm

import (
	"encoding/json"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"boxlite/internal/guestproto"
	"boxlite/kernels"
	"boxlite/libvm/devicefilter"
	"boxlite/libvm/seccomp"
)

// Annotations of config.json that shape the VM. A flag of the same name, where
// there is one, wins over the annotation.
const (
	AnnotationKernel = kernels.Annotation // lean or net
	AnnotationMemory = "boxlite.memory"   // MiB of the VM, the guest kernel's own included
	AnnotationVCPUs  = "boxlite.vcpus"
	// AnnotationTemplate is auto, or off to boot the VM where --template would
	// have it start from a template.
	AnnotationTemplate = "boxlite.template"
)

// annotationsSandbox are those of Podman and CRI-O and of containerd's CRI on
// the members of a pod: the id of the container whose namespaces they join.
// containerd's is on that container too.
var annotationsSandbox = []string{"io.kubernetes.cri-o.SandboxID", "io.kubernetes.cri.sandbox-id"}

// sandboxOf is empty for a container that is in no pod.
func sandboxOf(spec *specs.Spec) string {
	for _, name := range annotationsSandbox {
		if id := spec.Annotations[name]; id != "" {
			return id
		}
	}
	return ""
}

// Overrides are the shape that flags ask for. Zero values leave the choice to
// annotations and config.json.
type Overrides struct {
	Kernel    string
	MemoryMiB int
	VCPUs     int
	Scratch   string // as AnnotationScratch
}

// Shape is what the VM of a container looks like.
type Shape struct {
	// Privileged says that the container holds CAP_SYS_ADMIN and so gets
	// writable /sys, /proc/sys and cgroups, and no masked paths.
	Privileged   bool
	Kernel       kernels.Kernel
	KernelReason string
	MemoryMiB    int
	VCPUs        int
	// Machine is what config.json's vm object says of the VM's parts.
	Machine Machine `json:",omitzero"`
}

// Machine holds a container's own choice of hypervisor and kernel, as config-vm.md
// of the runtime spec has it. Its zero value leaves all to boxlite.
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
	// Recursive takes the mounts below Source along.
	Recursive bool
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
	// Scratch is nil for a container without such a disk.
	Scratch *Scratch `json:",omitempty"`
	// Nodes says that device nodes are made in the share.
	Nodes bool `json:",omitempty"`
	// Binds fill the share, the container's rootfs first.
	Binds []Bind
	// Warnings are for the log: what was asked for and left out, and why.
	Warnings []string
}

// rootfsName is the share's entry for the container's root file system.
const rootfsName = "rootfs"

const (
	defaultMemoryMiB = 1024
	// guestRoomMiB is what the guest's kernel, guestinit and the page tables of
	// the VM's memory take beside the container's own limit.
	guestRoomMiB = 128
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

// Rewrite turns a bundle's spec into the guest spec and the shape of the VM. It
// reads nothing but its arguments and changes none of them: host holds all
// that is to be known of the host, rootfs is the absolute path of root.path.
func Rewrite(spec *specs.Spec, rootfs string, host *HostFacts, over Overrides) (*Plan, error) {
	guest, err := copySpec(spec)
	if err != nil {
		return nil, err
	}
	p := &Plan{Guest: guest}
	if err := p.shape(spec, host, over); err != nil {
		return nil, err
	}
	p.root(spec, rootfs)
	p.process()
	p.namespaces()
	if err := p.userNamespace(host); err != nil {
		return nil, err
	}
	if err := p.mounts(host); err != nil {
		return nil, err
	}
	if err := p.scratch(spec.Annotations[AnnotationScratch], over.Scratch); err != nil {
		return nil, err
	}
	p.devices(host)
	if p.Shape.Privileged {
		if err := p.privilege(spec.Annotations); err != nil {
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
	p.Nodes = makesNodes(p.Guest)
	p.hostOnly(spec)
	return p, nil
}

// makesNodes says whether device nodes are made in the share: by the container, if
// it has CAP_MKNOD, or for it, where no file system of the guest's own is in their
// place.
func makesNodes(guest *specs.Spec) bool {
	if slices.Contains(allCapabilities(guest.Process), "CAP_MKNOD") {
		return true
	}
	nodes := []string{"/dev/null"} // and others beside it, in every container
	if guest.Linux != nil {
		for _, d := range guest.Linux.Devices {
			if d.Type != "p" {
				nodes = append(nodes, path.Join("/", d.Path))
			}
		}
	}
	return slices.ContainsFunc(nodes, func(node string) bool { return sharesPath(guest.Mounts, node) })
}

// sharesPath says whether a path of the container's is in the share: below none of
// its mounts, or below a bind mount nearest.
func sharesPath(mounts []specs.Mount, file string) bool {
	nearest, shared := "", true
	for _, m := range mounts {
		dest := path.Join("/", m.Destination)
		if below(file, dest) && len(dest) >= len(nearest) { // a later mount covers an earlier one
			nearest, shared = dest, isBind(&m)
		}
	}
	return shared
}

// below says whether a path is dir or below it; both are clean.
func below(file, dir string) bool {
	return file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
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

func copySpec(spec *specs.Spec) (*specs.Spec, error) {
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

func (p *Plan) warnf(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

// shape decides the VM's size, kernel and privilege.
func (p *Plan) shape(spec *specs.Spec, host *HostFacts, over Overrides) error {
	caps := allCapabilities(spec.Process)
	p.Shape.Privileged = slices.Contains(caps, "CAP_SYS_ADMIN")
	kernel, reason, err := kernels.Select(caps, spec.Annotations[AnnotationKernel], over.Kernel)
	if err != nil {
		return err
	}
	p.Shape.Kernel, p.Shape.KernelReason = kernel, reason

	memory, vcpus := sizeOf(spec, host.CPUs)
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
	if err := checkMemory(p.Shape.MemoryMiB); err != nil {
		return err
	}
	if p.Shape.VCPUs, err = override(vcpus, spec.Annotations, AnnotationVCPUs, over.VCPUs); err != nil {
		return err
	}
	return nil
}

func checkMemory(mib int) error {
	if mib < minMemoryMiB {
		return fmt.Errorf("VM memory of %d MiB: at least %d are needed", mib, minMemoryMiB)
	}
	if mib > maxMemoryMiB {
		return fmt.Errorf("VM memory of %d MiB: at most %d are possible", mib, maxMemoryMiB)
	}
	return nil
}

// sizeOf derives the VM's size from the container's limits.
func sizeOf(spec *specs.Spec, hostCPUs int) (memoryMiB, vcpus int) {
	memoryMiB, vcpus = defaultMemoryMiB, hostCPUs
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
	need := int((limit-1)>>20) + 1 + guestRoomMiB
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

func (p *Plan) root(spec *specs.Spec, rootfs string) {
	p.Guest.Root.Path = guestSharePath(rootfsName)
	// The rootfs is shared writable even where root.readonly is set: mount
	// points that are missing have to be made in it (as runc makes them). The
	// guest mounts it read-only for the container.
	p.Binds = append(p.Binds, Bind{Name: rootfsName, Source: rootfs, Recursive: true})
}

// process takes out of the process object what only the host applies, and the
// capabilities that no kernel of ours knows.
func (p *Plan) process() {
	if p.Guest.Process == nil {
		return
	}
	p.Warnings = append(p.Warnings, GuestProcess(p.Guest.Process)...)
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

// namespaces keeps the types that make sense inside the VM. The network is the
// VM's own, and a path names a namespace of the host's kernel: the nearest
// thing is a new namespace in the guest.
func (p *Plan) namespaces() {
	keep := p.Guest.Linux.Namespaces[:0]
	for _, ns := range p.Guest.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			continue
		}
		if ns.Path != "" && ns.Type != specs.MountNamespace {
			p.warnf("%s namespace %s belongs to the host's kernel: the container gets one of its own", ns.Type, ns.Path)
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
	if hooks := hooksOf(spec).StartContainer; len(hooks) > 0 {
		g.Hooks = &specs.Hooks{StartContainer: hooks} // the others are the host's
	}
	g.Linux.CgroupsPath = ""
	g.Linux.MountLabel = ""
	g.Linux.Resources = guestResources(g.Linux.Resources, p.Shape.VCPUs) // the device filter has its devices
}

// mounts gives every bind mount a place in the share and turns the mounts that
// describe the host's kernel into the guest's own.
func (p *Plan) mounts(host *HostFacts) error {
	p.uniteCgroups()
	var left []string
	for i := range p.Guest.Mounts {
		m := &p.Guest.Mounts[i]
		if m.Type == "cgroup" && !isBind(m) {
			m.Type = "cgroup2" // the guest has no v1 hierarchies, whatever the host has
			m.Source = "cgroup"
			continue
		}
		if m.Type == "overlay" && !isBind(m) {
			if err := p.overlay(m); err != nil {
				return err
			}
			continue
		}
		if !isBind(m) {
			continue
		}
		src, ok := host.Sources[m.Source]
		if !ok {
			return fmt.Errorf("mount %s: source %s was not looked at", m.Destination, m.Source)
		}
		if _, known := guestDevices[m.Source]; src.Kind == SourceDevice && !known && host.UserNamespace {
			// What podman --privileged and --device mean where no node can be made.
			left = append(left, m.Source)
			continue
		}
		if err := p.bind(m, src); err != nil {
			return err
		}
	}
	if len(left) > 0 {
		p.leaveDevices(left)
		p.Guest.Mounts = slices.DeleteFunc(p.Guest.Mounts, func(m specs.Mount) bool { return isBind(&m) && slices.Contains(left, m.Source) })
	}
	return nil
}

// uniteCgroups takes binds of single hierarchies of cgroup v1 out, which Podman has
// for systemd to write in where the host has such: the guest's only hierarchy
// becomes writable in their place.
func (p *Plan) uniteCgroups() {
	const root = "/sys/fs/cgroup"
	hierarchy := func(m specs.Mount) bool {
		return isBind(&m) && strings.HasPrefix(m.Source, root+"/") && strings.HasPrefix(m.Destination, root+"/")
	}
	if !slices.ContainsFunc(p.Guest.Mounts, hierarchy) {
		return
	}
	p.Guest.Mounts = slices.DeleteFunc(p.Guest.Mounts, hierarchy)
	for i := range p.Guest.Mounts {
		if m := &p.Guest.Mounts[i]; m.Type == "cgroup" {
			m.Options = append(m.Options, "rw")
		}
	}
}

func (p *Plan) leaveDevices(paths []string) {
	slices.Sort(paths)
	p.warnf("devices of the host that no VM has are left out: %s", strings.Join(slices.Compact(paths), " "))
}

func (p *Plan) bind(m *specs.Mount, src Source) error {
	switch src.Kind {
	case SourceMissing:
		return fmt.Errorf("mount %s: source %s: no such file or directory", m.Destination, m.Source)
	case SourceGuest:
		m.Source = src.GuestPath
		return nil
	case SourceShm:
		// A tmpfs of the host's for shared memory (podman, docker's shareable
		// ipc): shared memory over a network file system would be neither.
		m.Type, m.Source = "tmpfs", "shm"
		m.Options = []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatUint(src.SizeBytes, 10)}
		return nil
	case SourceDevice:
		if _, known := guestDevices[m.Source]; !known {
			return fmt.Errorf("mount %s: device %s is the host's and cannot be shown in a VM", m.Destination, m.Source)
		}
		return nil // the guest's own node of that path
	}
	p.share(m, Bind{
		Source:    src.Path,
		ReadOnly:  readOnly(m.Options),
		Recursive: slices.Contains(m.Options, "rbind"),
		File:      src.Kind == SourceFile,
	})
	return nil
}

// relativeLayer matches an option of an overlay with a path that is relative.
// Colons separate those of lowerdir, unless escaped.
var relativeLayer = regexp.MustCompile(`^(lowerdir=(.*[^\\]:)?|upperdir=|workdir=)[^/:]`)

// overlay leaves the making of the mount to the host, and has the guest bind it.
// The directories of every overlay in config.json are the host's, as with runc:
// who writes it can know none of the guest's.
func (p *Plan) overlay(m *specs.Mount) error {
	words := MountOptions()
	var forHost []string
	forGuest := []string{"bind"}
	for _, o := range m.Options {
		if relativeLayer.MatchString(o) {
			return fmt.Errorf("mount %s: overlay option %q: want absolute paths", m.Destination, o)
		}
		if slices.Contains(words, o) {
			forGuest = append(forGuest, o)
		} else {
			forHost = append(forHost, o)
		}
	}
	if !slices.ContainsFunc(forHost, func(o string) bool { return strings.HasPrefix(o, "lowerdir") }) {
		return fmt.Errorf("mount %s: an overlay without lowerdir", m.Destination)
	}
	m.Type, m.Options = "bind", forGuest
	p.share(m, Bind{Source: m.Destination, Overlay: strings.Join(forHost, ","), ReadOnly: readOnly(forGuest)})
	return nil
}

// share gives b a name in the share, and the guest's mount that as its source.
func (p *Plan) share(m *specs.Mount, b Bind) {
	b.Name = path.Join("mounts", strconv.Itoa(len(p.Binds)-1))
	p.Binds = append(p.Binds, b)
	m.Source = guestSharePath(b.Name)
}

// guestSharePath is where the guest finds an entry of the share.
func guestSharePath(name string) string { return path.Join(guestproto.ShareDir, name) }

// isBind follows runc: the options decide, whatever the type says.
func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func readOnly(options []string) bool {
	ro := false
	for _, o := range options {
		switch o {
		case "ro", "rro":
			ro = true
		case "rw", "rrw":
			ro = false
		}
	}
	return ro
}
