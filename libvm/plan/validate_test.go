package plan

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestValidateRefuses(t *testing.T) {
	number := func(n int) *int { return &n }
	for name, c := range map[string]struct {
		edit func(*specs.Spec)
		want string // in the error, which names the field
	}{
		"no version":    {func(s *specs.Spec) { s.Version = "" }, `ociVersion ""`},
		"not a version": {func(s *specs.Spec) { s.Version = "1.0" }, `ociVersion "1.0"`},
		"another major": {func(s *specs.Spec) { s.Version = "2.0.0" }, `ociVersion "2.0.0"`},
		"no root":       {func(s *specs.Spec) { s.Root = nil }, "root.path"},
		"no args":       {func(s *specs.Spec) { s.Process.Args = nil }, "process.args"},
		"relative cwd":  {func(s *specs.Spec) { s.Process.Cwd = "tmp" }, "process.cwd"},
		"rlimit twice":  {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_AS"}, {Type: "RLIMIT_AS"}} }, "RLIMIT_AS is listed twice"},
		"I/O priority": {func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		}, "ioPriority.priority 8"},
		"no destination": {func(s *specs.Spec) { s.Mounts = []specs.Mount{{Type: "tmpfs"}} }, "destination"},
		"half a mapping": {func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/a", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}}}
		}, "mount /a: uidMappings and gidMappings"},
		"volume on proc": {func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/x/../proc", Type: "bind", Source: "/a"}}
		}, `"/proc" cannot be mounted because it is not of type proc`},
		"volume on proc of type proc": {func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc", Source: "/a", Options: []string{"rbind"}}}
		}, `"/proc" cannot be mounted because it is not of type proc`},
		"volume in proc": {func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/proc/self/attr", Type: "tmpfs"}}
		}, `"/proc/self/attr" cannot be mounted because it is inside /proc`},
		"empty annotation": {func(s *specs.Spec) { s.Annotations = map[string]string{"": "x"} }, "annotations"},
		"relative hook":    {func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "hook"}}} }, `poststop hook #0: path "hook"`},
		"timeout of zero": {func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/h", Timeout: number(0)}}}
		}, "createRuntime hook #0: timeout 0"},
		"namespace type":      {namespace("disk", ""), `namespace type "disk"`},
		"namespace twice":     {func(s *specs.Spec) { namespace(specs.PIDNamespace, "")(s); namespace(specs.PIDNamespace, "")(s) }, `"pid" is listed twice`},
		"relative namespace":  {namespace(specs.IPCNamespace, "proc/1/ns/ipc"), `ipc namespace: path "proc/1/ns/ipc"`},
		"offsets of nothing":  {func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1}} }, "linux.timeOffsets without"},
		"mappings of nothing": {func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, "linux.uidMappings and gidMappings without"},
		"relative device":     {func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "dev/x", Type: "c"}} }, "linux.devices: path"},
		"device type":         {func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "z"}} }, "linux.devices: /dev/x: type"},
		"network device":      {func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {}} }, "linux.netDevices"},
		"memory policy":       {func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind} }, "linux.memoryPolicy"},
		"cache allocation":    {func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }, "linux.intelRdt"},
		"personality":         {func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} }, `linux.personality "BSD"`},
		"seccomp listener":    {func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/s"} }, "linux.seccomp.listenerPath"},
		"listener's metadata": {func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{ListenerMetadata: "m"} }, "listenerMetadata without"},
		"syscalls of no name": {func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{Syscalls: []specs.LinuxSyscall{{}}} }, "linux.seccomp.syscalls[0]"},
		"vm without kernel":   {func(s *specs.Spec) { s.VM = &specs.VM{} }, "vm.kernel.path is missing"},
		"relative vm kernel":  {vm(func(v *specs.VM) { v.Kernel.Path = "vmlinux" }), `vm.kernel.path "vmlinux"`},
		"vm initrd":           {vm(func(v *specs.VM) { v.Kernel.InitRD = "/initrd" }), "vm.kernel.initrd"},
		"relative hypervisor": {vm(func(v *specs.VM) { v.Hypervisor.Path = "qemu" }), `vm.hypervisor.path "qemu"`},
		"vm image":            {vm(func(v *specs.VM) { v.Image.Path = "/disk.img" }), "vm.image"},
		"vm device tree":      {vm(func(v *specs.VM) { v.HwConfig = &specs.HWConfig{DtDevs: []string{"/uart"}} }), "vm.hwconfig"},
		"vm of no processor":  {vm(func(v *specs.VM) { v.HwConfig = &specs.HWConfig{VCPUs: new(uint32)} }), "vm.hwconfig.vcpus"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := minimal()
			if err := validate(spec); err != nil {
				t.Fatal(err)
			}
			c.edit(spec)
			if err := validate(spec); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("validate = %v, want an error with %q", err, c.want)
			}
		})
	}
}

func namespace(kind specs.LinuxNamespaceType, path string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
	}
}

func vm(edit func(*specs.VM)) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.VM = &specs.VM{Kernel: specs.VMKernel{Path: "/boot/vmlinux"}}
		edit(s.VM)
	}
}
