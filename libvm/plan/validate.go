package plan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxConfigBytes bounds config.json, which crosses the control port whole.
const maxConfigBytes = 4 << 20

// LoadSpec reads and checks a bundle's config.json. Errors name the file and
// what is wrong with it.
func LoadSpec(bundle string) (*specs.Spec, error) {
	name := filepath.Join(bundle, "config.json")
	st, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("JSON specification file %s not found", name)
	}
	if err != nil {
		return nil, err
	}
	if st.Size() > maxConfigBytes {
		return nil, fmt.Errorf("%s: %d bytes, at most %d", name, st.Size(), maxConfigBytes)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	spec, err := parseSpec(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return spec, nil
}

// parseSpec is LoadSpec without the file.
func parseSpec(raw []byte) (*specs.Spec, error) {
	spec := new(specs.Spec)
	if err := json.Unmarshal(raw, spec); err != nil {
		return nil, err
	}
	return spec, validate(spec)
}

// semver is the grammar of semver.org 2.0.0 with the major version that the
// runtime spec has had since 2017.
var semver = regexp.MustCompile(`^1\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// validate refuses what cannot be honoured in a VM or makes no sense, before
// anything has been made.
func validate(spec *specs.Spec) error {
	if !semver.MatchString(spec.Version) {
		return fmt.Errorf("ociVersion %q: want a version 1.x.y", spec.Version)
	}
	if spec.Root == nil || spec.Root.Path == "" {
		return errors.New("root.path is missing")
	}
	if spec.Process != nil {
		if err := ValidateProcess(spec.Process); err != nil {
			return err
		}
	}
	for _, m := range spec.Mounts {
		if m.Destination == "" {
			return errors.New("a mount without destination")
		}
		if (m.UIDMappings == nil) != (m.GIDMappings == nil) {
			return fmt.Errorf("mount %s: uidMappings and gidMappings go together", m.Destination)
		}
		if err := validateInProc(m); err != nil {
			return err
		}
	}
	if _, ok := spec.Annotations[""]; ok {
		return errors.New("annotations: a key is empty")
	}
	if err := validateHooks(Hooks(spec)); err != nil {
		return err
	}
	if spec.VM != nil {
		if err := validateVM(spec.VM); err != nil {
			return err
		}
	}
	if spec.Linux == nil {
		return nil
	}
	return validateLinux(spec.Linux)
}

// underProc are the files that a mount may cover, as with runc: lxcfs does.
var underProc = []string{
	"cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps", "sys/crypto/fips_enabled", "sys/kernel/ns_last_pid", "uptime",
}

// validateInProc refuses what would take the container's proc from it.
func validateInProc(m specs.Mount) error {
	dest := filepath.Join("/", m.Destination)
	name, inside := strings.CutPrefix(dest, "/proc/")
	switch {
	case !isBind(&m) && (m.Type == "proc" || m.Type == "sysfs") || m.Source == "/proc":
	case dest == "/proc":
		return fmt.Errorf("mount: %q cannot be mounted because it is not of type proc", dest)
	case inside && !slices.Contains(underProc, name):
		return fmt.Errorf("mount: %q cannot be mounted because it is inside /proc", dest)
	}
	return nil
}

// ValidateProcess checks the process object of config.json or of an exec.
func ValidateProcess(proc *specs.Process) error {
	if len(proc.Args) == 0 {
		return errors.New("process.args is empty")
	}
	if !filepath.IsAbs(proc.Cwd) {
		return fmt.Errorf("process.cwd %q is not absolute", proc.Cwd)
	}
	seen := map[string]bool{}
	for _, l := range proc.Rlimits {
		if seen[l.Type] {
			return fmt.Errorf("process.rlimits: %s is listed twice", l.Type)
		}
		seen[l.Type] = true
	}
	if p := proc.IOPriority; p != nil && (p.Priority < 0 || p.Priority > 7) {
		return fmt.Errorf("process.ioPriority.priority %d: 0 to 7", p.Priority)
	}
	return nil
}

func validateHooks(h *specs.Hooks) error {
	for _, k := range []struct {
		kind  string
		hooks []specs.Hook
	}{
		//lint:ignore SA1019 deprecated in the spec, but what docker uses
		{"prestart", h.Prestart},
		{"createRuntime", h.CreateRuntime},
		{"createContainer", h.CreateContainer},
		{"startContainer", h.StartContainer},
		{"poststart", h.Poststart},
		{"poststop", h.Poststop},
	} {
		for i, hook := range k.hooks {
			if !filepath.IsAbs(hook.Path) {
				return fmt.Errorf("%s hook #%d: path %q is not absolute", k.kind, i, hook.Path)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fmt.Errorf("%s hook #%d: timeout %d is not above zero", k.kind, i, *hook.Timeout)
			}
		}
	}
	return nil
}

// validateVM refuses what of the vm object boxlite decides itself.
func validateVM(vm *specs.VM) error {
	switch {
	case vm.Kernel.Path == "":
		return errors.New("vm.kernel.path is missing")
	case !filepath.IsAbs(vm.Kernel.Path):
		return fmt.Errorf("vm.kernel.path %q is not absolute", vm.Kernel.Path)
	case vm.Kernel.InitRD != "":
		return errors.New("vm.kernel.initrd: the guest boots from boxlite's own initramfs")
	case vm.Hypervisor.Path != "" && !filepath.IsAbs(vm.Hypervisor.Path):
		return fmt.Errorf("vm.hypervisor.path %q is not absolute", vm.Hypervisor.Path)
	case vm.Image != (specs.VMImage{}):
		return errors.New("vm.image: the guest's root is the container's rootfs, not a disk image")
	}
	if hw := vm.HwConfig; hw != nil {
		switch {
		case hw.DeviceTree != "" || len(hw.DtDevs)+len(hw.IOMems)+len(hw.Irqs) > 0:
			return errors.New("vm.hwconfig: no device of the host's is given to a VM")
		case hw.VCPUs != nil && *hw.VCPUs == 0:
			return errors.New("vm.hwconfig.vcpus is zero")
		}
	}
	return nil
}

// namespaceTypes are those of the runtime spec.
var namespaceTypes = []specs.LinuxNamespaceType{
	specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace,
	specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace,
}

func validateLinux(l *specs.Linux) error {
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range l.Namespaces {
		if !slices.Contains(namespaceTypes, ns.Type) {
			return fmt.Errorf("unknown namespace type %q", ns.Type)
		}
		if ns.Path != "" && !filepath.IsAbs(ns.Path) {
			return fmt.Errorf("%s namespace: path %q is not absolute", ns.Type, ns.Path)
		}
		if seen[ns.Type] {
			return fmt.Errorf("namespace type %q is listed twice", ns.Type)
		}
		seen[ns.Type] = true
	}
	for _, d := range l.Devices {
		if !filepath.IsAbs(d.Path) {
			return fmt.Errorf("linux.devices: path %q is not absolute", d.Path)
		}
		if !strings.Contains("cubp", d.Type) || len(d.Type) != 1 {
			return fmt.Errorf("linux.devices: %s: type %q of device: c, u, b or p", d.Path, d.Type)
		}
	}
	if len(l.TimeOffsets) > 0 && !seen[specs.TimeNamespace] {
		return errors.New("linux.timeOffsets without a time namespace")
	}
	if len(l.UIDMappings)+len(l.GIDMappings) > 0 && !seen[specs.UserNamespace] {
		return errors.New("linux.uidMappings and gidMappings without a user namespace")
	}
	if l.Seccomp != nil {
		if err := validateSeccomp(l.Seccomp); err != nil {
			return err
		}
	}
	switch {
	case len(l.NetDevices) > 0:
		return errors.New("linux.netDevices: a device of the host's cannot be moved into a VM")
	case l.MemoryPolicy != nil:
		return errors.New("linux.memoryPolicy: a VM's memory is one NUMA node")
	case l.IntelRdt != nil:
		return errors.New("linux.intelRdt: a VM's cache allocation cannot be set")
	case l.Personality != nil && l.Personality.Domain != specs.PerLinux && l.Personality.Domain != specs.PerLinux32:
		return fmt.Errorf("linux.personality %q: LINUX or LINUX32", l.Personality.Domain)
	case l.Personality != nil && len(l.Personality.Flags) > 0:
		return fmt.Errorf("linux.personality: flag %q: there are none", l.Personality.Flags[0])
	}
	return nil
}

// validateSeccomp checks what the compiler of filters does not see.
func validateSeccomp(s *specs.LinuxSeccomp) error {
	switch {
	case s.ListenerPath != "":
		return errors.New("linux.seccomp.listenerPath: notifications do not cross the VM's boundary")
	case s.ListenerMetadata != "":
		return errors.New("linux.seccomp.listenerMetadata without listenerPath")
	}
	for i, call := range s.Syscalls {
		if len(call.Names) == 0 {
			return fmt.Errorf("linux.seccomp.syscalls[%d]: names is empty", i)
		}
	}
	return nil
}
