package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/kernels"
)

// filtered is minimal with a filter of that default and a device rule.
func filtered(action specs.LinuxSeccompAction, caps ...string) *specs.Spec {
	spec := minimal(caps...)
	spec.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: action,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}},
	}
	return spec
}

func but(names ...string) []string {
	return slices.DeleteFunc(allKnown(), func(name string) bool { return slices.Contains(names, name) })
}

func withholds(name string) HostFacts {
	return HostFacts{WithheldCapabilities: map[string]bool{name: true}}
}

func TestSeccompFilterGoesWithEveryCapability(t *testing.T) {
	upToAuditRead := slices.DeleteFunc(allKnown(), func(name string) bool {
		return name == "CAP_PERFMON" || name == "CAP_BPF" || name == "CAP_CHECKPOINT_RESTORE"
	})
	for _, c := range []struct {
		name   string
		caps   []string
		action specs.LinuxSeccompAction
		keep   bool
		want   bool // a filter is left
		host   HostFacts
	}{
		{"all 41, a list of what is allowed", allKnown(), specs.ActErrno, false, false, HostFacts{}},
		{"the ALL of older engines", upToAuditRead, specs.ActErrno, false, false, HostFacts{}},
		{"all, kept by annotation", allKnown(), specs.ActErrno, true, true, HostFacts{}},
		{"all, a list of what is forbidden", allKnown(), specs.ActAllow, false, true, HostFacts{}},
		{"all, a list of what is not logged", allKnown(), specs.ActLog, false, true, HostFacts{}},
		{"all but one", upToAuditRead[1:], specs.ActErrno, false, true, HostFacts{}},
		{"CAP_SYS_ADMIN alone", []string{"CAP_SYS_ADMIN"}, specs.ActErrno, false, true, HostFacts{}},
		{"none", nil, specs.ActErrno, false, true, HostFacts{}},
		{"all that the caller has", but("CAP_SYS_RESOURCE"), specs.ActErrno, false, false, withholds("CAP_SYS_RESOURCE")},
		{"all but one of what the caller has", but("CAP_SYS_RESOURCE", "CAP_KILL"), specs.ActErrno, false, true, withholds("CAP_SYS_RESOURCE")},
		{"all that the caller has, which is not much", but("CAP_SYS_ADMIN"), specs.ActErrno, false, true, withholds("CAP_SYS_ADMIN")},
	} {
		spec := filtered(c.action, c.caps...)
		if c.keep {
			spec.Annotations = map[string]string{AnnotationSeccomp: "keep"}
		}
		c.host.CPUs = 1
		plan, err := Rewrite(spec, "/r", &c.host, Overrides{})
		if err != nil {
			t.Fatal(err)
		}
		if plan.Guest.Linux.Seccomp != nil {
			t.Errorf("%s: the guest is to compile a filter", c.name)
		}
		if got := plan.Seccomp != nil; got != c.want {
			t.Errorf("%s: filter left = %v, want %v", c.name, got, c.want)
		}
		if warned := strings.Contains(strings.Join(plan.Warnings, "\n"), "seccomp"); warned == c.want {
			t.Errorf("%s: warnings = %q", c.name, plan.Warnings)
		}
	}
	spec := filtered(specs.ActErrno, allKnown()...)
	spec.Annotations = map[string]string{AnnotationSeccomp: "drop"}
	if _, err := Rewrite(spec, "/r", &HostFacts{CPUs: 1}, Overrides{}); err == nil || !strings.Contains(err.Error(), `boxlite.seccomp="drop": valid is "keep"`) {
		t.Errorf("error of a wrong value = %v", err)
	}
}

// CAP_SYS_ADMIN in any of the five sets gives the shape: a process may be about to raise it.
func TestPrivilegedShapeBySet(t *testing.T) {
	for name, set := range map[string]func(*specs.LinuxCapabilities) *[]string{
		"bounding":    func(c *specs.LinuxCapabilities) *[]string { return &c.Bounding },
		"effective":   func(c *specs.LinuxCapabilities) *[]string { return &c.Effective },
		"permitted":   func(c *specs.LinuxCapabilities) *[]string { return &c.Permitted },
		"inheritable": func(c *specs.LinuxCapabilities) *[]string { return &c.Inheritable },
		"ambient":     func(c *specs.LinuxCapabilities) *[]string { return &c.Ambient },
	} {
		spec := minimal("CAP_CHOWN")
		*set(spec.Process.Capabilities) = []string{"CAP_SYS_ADMIN"}
		if plan := rewrite(t, spec); !plan.Shape.Privileged {
			t.Errorf("CAP_SYS_ADMIN in %s does not make the container privileged", name)
		}
	}
}

func TestPrivilegedMountsAreWritable(t *testing.T) {
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "ro"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "rro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid"}},
		{Destination: "/data", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
	}
	for _, c := range []struct {
		caps     []string
		readOnly []bool
	}{
		{[]string{"CAP_SYS_ADMIN"}, []bool{false, false, false, true}},
		{[]string{"CAP_NET_ADMIN", "CAP_SYS_MODULE"}, []bool{true, true, true, true}},
	} {
		spec := minimal(c.caps...)
		spec.Mounts = mounts
		for i, m := range rewrite(t, spec).Guest.Mounts {
			if got, _ := readOnly(m.Options); got != c.readOnly[i] {
				t.Errorf("with %v: %s read-only = %v (options %q), want %v", c.caps, m.Destination, got, m.Options, c.readOnly[i])
			}
		}
	}
}

func TestDevicesOfPrivileged(t *testing.T) {
	host := &HostFacts{CPUs: 1, Devices: map[string]bool{"b254:0": true, "c10:200": true, "b7:0": true, "c10:232": true}}
	spec := minimal(allKnown()...)
	spec.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/vda", Type: "b", Major: 254, Minor: 0},
		{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232},
		{Path: "/dev/loop0", Type: "b", Major: 7, Minor: 0},
	}
	plan, err := Rewrite(spec, "/r", host, Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, d := range plan.Guest.Linux.Devices {
		if _, double := got[d.Path]; double {
			t.Errorf("%s is there twice", d.Path)
		}
		got[d.Path] = deviceKey(d)
	}
	for path, key := range guestDevices {
		if got[path] != key {
			t.Errorf("%s = %q, want %s", path, got[path], key)
		}
	}
	if len(got) != len(guestDevices) {
		t.Errorf("devices = %v, want those of the guest only", got)
	}
	if text := strings.Join(plan.Warnings, "\n"); !strings.Contains(text, "/dev/kvm /dev/vda") {
		t.Errorf("warnings %q do not name /dev/kvm and /dev/vda", text)
	}

	if devices := rewrite(t, minimal("CAP_MKNOD", "CAP_NET_ADMIN")).Guest.Linux.Devices; len(devices) != 0 {
		t.Errorf("an unprivileged container got %v", devices)
	}
}

// The files for tracing are shown where capabilities and kernel have use for them.
func TestTracingFiles(t *testing.T) {
	full := &HostFacts{CPUs: 1, FullKernel: true}
	pod := func(kernel kernels.Kernel) *HostFacts {
		return &HostFacts{CPUs: 1, Pod: &Pod{Sandbox: "pod", Member: "m", Shape: Shape{Kernel: kernel}}}
	}
	for name, c := range map[string]struct {
		capability string
		host       *HostFacts
		kernel     kernels.Kernel
		shown      bool
	}{
		"no capability":        {"CAP_CHOWN", full, kernels.Lean, false},
		"to trace":             {"CAP_PERFMON", full, kernels.Full, true},
		"no such kernel":       {"CAP_SYS_ADMIN", &HostFacts{CPUs: 1}, kernels.Lean, false},
		"a pod with it":        {"CAP_BPF", pod(kernels.Full), kernels.Full, true},
		"a pod without it":     {"CAP_BPF", pod(kernels.Net), kernels.Net, false},
		"a pod, no capability": {"CAP_CHOWN", pod(kernels.Full), kernels.Full, false},
	} {
		spec := minimal(c.capability)
		spec.Mounts = []specs.Mount{
			{Destination: "/sys", Type: "sysfs", Source: "sysfs"},
			{Destination: "/sys/kernel/debug", Type: "tmpfs", Source: "tmpfs"},
		}
		p, err := Rewrite(spec, "/rootfs", c.host, Overrides{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var destinations []string
		for _, m := range p.Guest.Mounts {
			destinations = append(destinations, m.Destination)
		}
		want := []string{"/sys", "/sys/kernel/debug"}
		if c.shown { // what config.json mounts there hides it
			want = []string{"/sys", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/debug"}
		}
		if p.Shape.Kernel != c.kernel || !slices.Equal(destinations, want) {
			t.Errorf("%s: kernel %s, mounts %q, want %s, %q", name, p.Shape.Kernel, destinations, c.kernel, want)
		}
	}
}

// A bind of the host's files for tracing is one of the guest's, where its kernel has some.
func TestBindOfTracingFiles(t *testing.T) {
	for kernel, refused := range map[kernels.Kernel]bool{kernels.Lean: true, kernels.Net: true, kernels.Full: false} {
		spec := minimal()
		spec.Annotations = map[string]string{AnnotationKernel: string(kernel)}
		for i, source := range []string{"/sys/kernel/debug", "/sys/kernel/tracing/events"} {
			host := &HostFacts{CPUs: 1, Sources: map[string]Source{source: {Kind: SourceGuest, Path: source, GuestPath: source}}}
			spec.Mounts = []specs.Mount{{Destination: "/there", Type: "bind", Source: source, Options: []string{"rbind"}}}
			_, err := Rewrite(spec, "/rootfs", host, Overrides{})
			if (err != nil) != refused || refused && !strings.Contains(err.Error(), "only full has "+source) {
				t.Errorf("%d: with the kernel %s: %v, want an error: %t", i, kernel, err, refused)
			}
		}
	}
}
