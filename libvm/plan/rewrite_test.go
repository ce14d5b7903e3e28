package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/golden"
)

// rewriteCase is the form of testdata/*.in.json.
type rewriteCase struct {
	Spec      *specs.Spec `json:"spec"`
	Rootfs    string      `json:"rootfs"`
	Facts     *HostFacts  `json:"facts"`
	Overrides Overrides   `json:"overrides"`
}

func TestRewriteGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no test cases: %v", err)
	}
	for _, in := range inputs {
		name := strings.TrimSuffix(filepath.Base(in), ".in.json")
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			var c rewriteCase
			if err := json.Unmarshal(raw, &c); err != nil {
				t.Fatal(err)
			}
			before, _ := json.Marshal(c.Spec)
			plan, err := Rewrite(c.Spec, c.Rootfs, c.Facts, c.Overrides)
			if err != nil {
				t.Fatal(err)
			}
			if after, _ := json.Marshal(c.Spec); !bytes.Equal(before, after) {
				t.Error("Rewrite changed the spec that it was given")
			}
			got, err := json.MarshalIndent(plan, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, name+".plan.json", append(got, '\n'))
		})
	}
}

// minimal is the least spec that Rewrite takes, with caps in every set.
func minimal(caps ...string) *specs.Spec {
	return &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{
			Bounding: slices.Clone(caps), Effective: slices.Clone(caps), Inheritable: slices.Clone(caps),
			Permitted: slices.Clone(caps), Ambient: slices.Clone(caps),
		}},
		Linux: &specs.Linux{
			MaskedPaths:   []string{"/proc/kcore"},
			ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

func rewrite(t *testing.T, spec *specs.Spec) *Plan {
	t.Helper()
	plan, err := Rewrite(spec, "/bundle/rootfs", &HostFacts{CPUs: 2}, Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func allKnown() []string {
	var all []string
	for name := range knownCapabilities {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func TestKnownCapabilitiesAreThe41(t *testing.T) {
	if n := len(knownCapabilities); n != 41 {
		t.Errorf("%d known capabilities, want 41: %v", n, allKnown())
	}
	for _, name := range []string{"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHECKPOINT_RESTORE"} {
		if !knownCapabilities[name] {
			t.Errorf("%s is not known", name)
		}
	}
}

func TestAllCapabilitiesGiveThePrivilegedShape(t *testing.T) {
	plan := rewrite(t, minimal(allKnown()...))
	if !plan.Shape.Privileged || plan.Shape.Kernel != "net" {
		t.Errorf("shape = %+v, want privileged with kernel net", plan.Shape)
	}
	if l := plan.Guest.Linux; l.MaskedPaths != nil || l.ReadonlyPaths != nil {
		t.Errorf("masked %v and read-only %v paths are left", l.MaskedPaths, l.ReadonlyPaths)
	}
	if got := plan.Guest.Process.Capabilities.Effective; !slices.Equal(got, allKnown()) {
		t.Errorf("effective = %v, want all 41", got)
	}
}

// A name prefixed twice, as from --cap-add CAP_SYS_ADMIN in a caller that adds a
// prefix of its own, once took away all of ALL.
func TestUnknownCapabilityCostsNoOther(t *testing.T) {
	plan := rewrite(t, minimal(append(allKnown(), "CAP_CAP_SYS_ADMIN", "CAP_NONSENSE")...))
	caps := plan.Guest.Process.Capabilities
	for name, set := range map[string][]string{"bounding": caps.Bounding, "effective": caps.Effective, "inheritable": caps.Inheritable, "permitted": caps.Permitted, "ambient": caps.Ambient} {
		if !slices.Equal(set, allKnown()) {
			t.Errorf("%s = %v, want all 41", name, set)
		}
	}
	text := strings.Join(plan.Warnings, "\n")
	for _, name := range []string{`"CAP_CAP_SYS_ADMIN"`, `"CAP_NONSENSE"`} {
		if strings.Count(text, name) != 1 {
			t.Errorf("warnings %q name %s not exactly once", text, name)
		}
	}
}

func TestDefaultContainerKeepsItsProtections(t *testing.T) {
	plan := rewrite(t, minimal("CAP_CHOWN", "CAP_NET_RAW"))
	if plan.Shape.Privileged || plan.Shape.Kernel != "lean" {
		t.Errorf("shape = %+v, want unprivileged with kernel lean", plan.Shape)
	}
	if l := plan.Guest.Linux; !slices.Equal(l.MaskedPaths, []string{"/proc/kcore"}) || !slices.Equal(l.ReadonlyPaths, []string{"/proc/sys"}) {
		t.Errorf("masked %v, read-only %v: not as given", l.MaskedPaths, l.ReadonlyPaths)
	}
}

func TestCapabilitySubsetsPassUnchanged(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	all := allKnown()
	for i := range 200 {
		var subset []string
		for _, name := range all {
			if rng.IntN(2) == 0 {
				subset = append(subset, name)
			}
		}
		plan := rewrite(t, minimal(subset...))
		caps := plan.Guest.Process.Capabilities
		for _, set := range [][]string{caps.Bounding, caps.Effective, caps.Inheritable, caps.Permitted, caps.Ambient} {
			if !slices.Equal(set, subset) {
				t.Fatalf("subset %d: %v became %v", i, subset, set)
			}
		}
		if got, want := plan.Shape.Privileged, slices.Contains(subset, "CAP_SYS_ADMIN"); got != want {
			t.Fatalf("subset %d: privileged = %v, want %v", i, got, want)
		}
		if got, want := string(plan.Shape.Kernel) == "net", slices.Contains(subset, "CAP_NET_ADMIN"); got != want {
			t.Fatalf("subset %d: net kernel = %v, want %v", i, got, want)
		}
		if len(plan.Warnings) != 0 {
			t.Fatalf("subset %d: warnings %v", i, plan.Warnings)
		}
	}
}

func TestSizeOf(t *testing.T) {
	mib := func(n int64) *int64 { n <<= 20; return &n }
	num := func(n int64) *int64 { return &n }
	period := func(n uint64) *uint64 { return &n }
	for _, c := range []struct {
		name         string
		memory       *int64
		quota        *int64
		period       *uint64
		cpuset       string
		memMiB, cpus int
	}{
		{"nothing asked", nil, nil, nil, "", 1024, 4},
		{"limit with room for the kernel", mib(512), nil, nil, "", 640, 4},
		{"a very small limit", mib(6), nil, nil, "", 192, 4},
		{"no limit as runc writes it", num(-1), num(-1), nil, "", 1024, 4},
		{"no limit as cgroup v1 has it", num(noMemoryLimit), nil, nil, "", 1024, 4},
		{"no limit, not in whole pages", num(math.MaxInt64), nil, nil, "", 1024, 4},
		{"a byte more than a step", num(512<<20 + 1), nil, nil, "", 704, 4},
		{"one and a half CPUs", nil, num(150000), period(100000), "", 1024, 2},
		{"quota without period", nil, num(100001), nil, "", 1024, 2},
		{"a sliver of a CPU", nil, num(1000), period(100000), "", 1024, 1},
		{"more than the host has", nil, num(900000), period(100000), "", 1024, 4},
		{"three processors by number", nil, nil, nil, "0-1,7", 1024, 3},
		{"less time than processors", nil, num(100000), period(100000), "0-3", 1024, 1},
		{"less processors than time", nil, num(400000), period(100000), "2", 1024, 1},
		{"no list of processors", nil, nil, nil, "1-0", 1024, 4},
	} {
		spec := &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: c.memory}, CPU: &specs.LinuxCPU{Quota: c.quota, Period: c.period, Cpus: c.cpuset},
		}}}
		if m, n := sizeOf(spec, DefaultMemoryMiB, 4); m != c.memMiB || n != c.cpus {
			t.Errorf("%s: sizeOf = %d MiB, %d CPUs, want %d, %d", c.name, m, n, c.memMiB, c.cpus)
		}
	}
}

func TestOverrides(t *testing.T) {
	spec := minimal()
	spec.Annotations = map[string]string{AnnotationMemory: "300", AnnotationVCPUs: "1", AnnotationKernel: "net"}
	plan, err := Rewrite(spec, "/r", &HostFacts{CPUs: 4}, Overrides{MemoryMiB: 400})
	if err != nil {
		t.Fatal(err)
	}
	if s := plan.Shape; s.MemoryMiB != 400 || s.VCPUs != 1 || s.Kernel != "net" {
		t.Errorf("shape = %+v, want the flag's 400 MiB and the annotations' 1 CPU and kernel net", s)
	}
	const beyond = "9223372036854775807"
	spec.Annotations = map[string]string{AnnotationMemory: beyond}
	if _, err := Rewrite(spec, "/r", &HostFacts{CPUs: 4}, Overrides{}); err == nil || !strings.Contains(err.Error(), beyond) {
		t.Errorf("annotation %s=%s: error %v, want one that has the number", AnnotationMemory, beyond, err)
	}
	for name, value := range map[string]string{AnnotationMemory: "lots", AnnotationVCPUs: "0", AnnotationKernel: "fat"} {
		spec.Annotations = map[string]string{name: value}
		if _, err := Rewrite(spec, "/r", &HostFacts{CPUs: 4}, Overrides{}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", value)) {
			t.Errorf("annotation %s=%s: error %v, want one that quotes the value", name, value, err)
		}
	}
}

func TestMissingSourceNamesTheMount(t *testing.T) {
	spec := minimal()
	spec.Mounts = []specs.Mount{{Destination: "/data", Source: "/nowhere", Type: "bind", Options: []string{"rbind"}}}
	_, err := Rewrite(spec, "/r", &HostFacts{CPUs: 1, Sources: map[string]Source{"/nowhere": {Path: "/nowhere"}}}, Overrides{})
	if err == nil || err.Error() != "mount /data: source /nowhere: no such file or directory" {
		t.Errorf("error = %v", err)
	}
}

func TestOverlayWithoutHostPathsNamesTheMount(t *testing.T) {
	for want, options := range map[string][]string{
		`mount /m: overlay option "lowerdir=a": want absolute paths`:    {"lowerdir=a"},
		`mount /m: overlay option "lowerdir=/a:b": want absolute paths`: {"lowerdir=/a:b", "upperdir=/u", "workdir=/w"},
		`mount /m: overlay option "upperdir=u": want absolute paths`:    {"lowerdir=/a", "upperdir=u", "workdir=/w"},
		`mount /m: overlay option "workdir=./w": want absolute paths`:   {"lowerdir=/a", "upperdir=/u", "workdir=./w"},
		`mount /m: an overlay without lowerdir`:                         {"ro", "upperdir=/u", "workdir=/w"},
	} {
		spec := minimal()
		spec.Mounts = []specs.Mount{{Destination: "/m", Source: "overlay", Type: "overlay", Options: options}}
		if _, err := Rewrite(spec, "/r", &HostFacts{CPUs: 1}, Overrides{}); err == nil || err.Error() != want {
			t.Errorf("options %q: error %v, want %s", options, err, want)
		}
	}
}

// A type beside bind means nothing, also one that the guest has another word for.
func TestBindOfTypeCgroup(t *testing.T) {
	spec := minimal()
	spec.Mounts = []specs.Mount{{Destination: "/c", Source: "/srv/c", Type: "cgroup", Options: []string{"rbind"}}}
	host := &HostFacts{CPUs: 1, Sources: map[string]Source{"/srv/c": {Kind: SourceDirectory, Path: "/srv/c"}}}
	plan, err := Rewrite(spec, "/r", host, Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := plan.Guest.Mounts[0].Source, plan.GuestPath(Bind{Name: "mounts/0"}); got != want || len(plan.Binds) != 2 {
		t.Errorf("source = %s, binds %+v, want %s", got, plan.Binds, want)
	}
}

func TestDeviceNodesInTheShare(t *testing.T) {
	dev := specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}
	for name, c := range map[string]struct {
		caps    []string
		mounts  []specs.Mount
		devices []specs.LinuxDevice
		want    bool
	}{
		"none":               {[]string{"CAP_CHOWN", "CAP_SYS_ADMIN"}, []specs.Mount{dev}, nil, false},
		"made by it":         {[]string{"CAP_MKNOD"}, []specs.Mount{dev}, nil, true},
		"no /dev":            {nil, nil, nil, true},
		"a /dev of files":    {nil, []specs.Mount{{Destination: "/dev/", Type: "bind", Source: "/data"}}, nil, true},
		"one over the other": {nil, []specs.Mount{{Destination: "/dev", Type: "bind", Source: "/data"}, dev}, nil, false},
		"in /dev":            {nil, []specs.Mount{dev}, []specs.LinuxDevice{{Path: "/dev/net/x", Type: "c", Major: 10, Minor: 200}}, false},
		"elsewhere":          {nil, []specs.Mount{dev}, []specs.LinuxDevice{{Path: "/device", Type: "c", Major: 10, Minor: 200}}, true},
		"in a volume":        {nil, []specs.Mount{dev, {Destination: "/dev/v", Options: []string{"rbind"}, Source: "/data"}}, []specs.LinuxDevice{{Path: "/dev/v/x", Type: "b", Major: 7}}, true},
		"a pipe elsewhere":   {nil, []specs.Mount{dev}, []specs.LinuxDevice{{Path: "/pipe", Type: "p"}}, false},
		"a name like /dev":   {nil, []specs.Mount{dev}, []specs.LinuxDevice{{Path: "/device/x", Type: "c", Major: 10, Minor: 200}}, true},
	} {
		spec := minimal(c.caps...)
		spec.Mounts, spec.Linux.Devices = c.mounts, c.devices
		plan, err := Rewrite(spec, "/bundle/rootfs", &HostFacts{CPUs: 2, Sources: map[string]Source{"/data": {Kind: SourceDirectory, Path: "/data"}}}, Overrides{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if plan.Nodes != c.want {
			t.Errorf("%s: Nodes = %v, want %v", name, plan.Nodes, c.want)
		}
	}
}

// A time namespace without offsets is the VM's.
func TestTimeNamespace(t *testing.T) {
	for name, offsets := range map[string]map[string]specs.LinuxTimeOffset{"none": nil, "one": {"monotonic": {Secs: 1}}} {
		spec := minimal()
		spec.Linux = &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.TimeNamespace}}, TimeOffsets: offsets}
		p, err := Rewrite(spec, "/rootfs", &HostFacts{CPUs: 2}, Overrides{})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(p.Guest.Linux.Namespaces); got != len(offsets) {
			t.Errorf("offsets: %s: the guest is asked for %d namespaces, want %d", name, got, len(offsets))
		}
	}
}
