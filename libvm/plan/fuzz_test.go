package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// FuzzRewrite holds what becomes of any config.json to what host and guest rely on.
func FuzzRewrite(f *testing.F) {
	inputs, err := filepath.Glob("testdata/*.in.json")
	if err != nil || len(inputs) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, in := range inputs {
		raw, err := os.ReadFile(in)
		if err != nil {
			f.Fatal(err)
		}
		var c struct {
			Spec json.RawMessage `json:"spec"`
		}
		if err := json.Unmarshal(raw, &c); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(c.Spec), []byte(nil), "", int64(0), false)
		f.Add([]byte(c.Spec), []byte{9, 0, 0, 40, 4, 3, 70, 1, 0, 11, 5, 0}, "/dev/sda", int64(math.MaxInt64), true)
	}
	const head = `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["true"],"cwd":"/"},`
	for _, rest := range []string{
		`"linux":{"resources":{"memory":{"limit":9223372036854771712},"cpu":{"quota":9223372036854775807,"period":18446744073709551615,"cpus":"0-9223372036854775807"}}}}`,
		`"linux":{"resources":{"memory":{"limit":1}},"devices":[{"path":"/dev/sda","type":"b","major":8},{"path":"/dev/p","type":"p"}]}}`,
		`"mounts":[{"destination":"/sys/fs/cgroup","type":"cgroup","source":"/sys/fs/cgroup","options":["rbind","ro"]},{"destination":"/m","type":"overlay","options":["rbind"]}]}`,
		`"mounts":[{"destination":"/sys/fs/cgroup/systemd","type":"bind","source":"/sys/fs/cgroup/systemd"},{"destination":"/sys/fs/cgroup","type":"cgroup"}]}`,
		`"mounts":[{"destination":"/a","type":"none","source":"../a","options":["bind"]},{"destination":"/a","type":"none","source":"../a","options":["rbind","rro"]}]}`,
		`"annotations":{"boxlite.memory":"9223372036854775807","boxlite.vcpus":"1","boxlite.scratch":"/a/../b=1G","boxlite.kernel":"net"}}`,
		`"linux":{"namespaces":[{"type":"user"},{"type":"network","path":"/proc/1/ns/net"},{"type":"pid","path":"/p"}],"uidMappings":[{"hostID":1000,"size":1}]}}`,
		`"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}}}`,
		`"hooks":{"prestart":[{"path":"/a"}],"startContainer":[{"path":"/b","timeout":1}]},"vm":{"kernel":{"path":"/k"},"hwconfig":{"vcpus":4294967295,"memory":9223372036854775807}}}`,
	} {
		f.Add([]byte(head+rest), []byte(nil), "", int64(0), false)
	}
	f.Fuzz(func(t *testing.T, raw, edits []byte, text string, number int64, rootless bool) {
		raw, err := edit(raw, edits, text, number)
		if err != nil {
			return
		}
		spec, err := parseSpec(raw)
		if err != nil {
			return
		}
		untouched, _ := parseSpec(raw)
		host := pretendedFacts(spec, rootless)
		plan, err := Rewrite(spec, "/bundle/rootfs", host, Overrides{})
		if !reflect.DeepEqual(spec, untouched) {
			t.Errorf("Rewrite changed the spec that it was given: %+v, was %+v", spec, untouched)
		}
		again, errAgain := Rewrite(spec, "/bundle/rootfs", host, Overrides{})
		if (err == nil) != (errAgain == nil) || !reflect.DeepEqual(plan, again) {
			t.Errorf("Rewrite twice = %+v, %v, then %+v, %v", plan, err, again, errAgain)
		}
		if err != nil {
			return
		}
		checkShape(t, spec, host, plan)
		checkBinds(t, spec, host, plan)
		checkGuestSpec(t, spec, host, plan)
	})
}

// edit changes values of a JSON text, which stays one: bytes changed at random
// rarely are. Each edit has three bytes: which value, what to do, and a second value.
func edit(raw, edits []byte, text string, number int64) ([]byte, error) {
	var tree any
	in := json.NewDecoder(bytes.NewReader(raw))
	in.UseNumber()
	if err := in.Decode(&tree); err != nil {
		return nil, err
	}
	for ; len(edits) >= 3; edits = edits[3:] {
		places := placesOf(&tree)
		at, other := places[(int(edits[0])+int(edits[2])<<8)%len(places)], places[int(edits[2])%len(places)]
		old := at.value
		switch edits[1] % 8 {
		case 0:
			at.set(text)
		case 1:
			at.set(number)
		case 2:
			at.set(nil)
		case 3:
			at.set(int64(-1))
		case 4: // another's
			at.set(other.value)
		case 5: // twice
			if list, ok := old.([]any); ok && len(list) > 0 && len(list) < 16 {
				at.set(append(slices.Clone(list), list[0]))
			}
		case 6:
			at.set([]any{text})
		case 7:
			at.set(map[string]any{text: number})
		}
		// What holds itself has no text.
		next, err := json.Marshal(tree)
		if err != nil || len(next) > 1<<16 {
			return nil, errors.New("no text")
		}
		again := json.NewDecoder(bytes.NewReader(next))
		again.UseNumber()
		if err := again.Decode(&tree); err != nil {
			return nil, err
		}
	}
	return json.Marshal(tree)
}

// place is where a value is in a JSON text.
type place struct {
	value any
	set   func(any)
}

// placesOf lists a value and all that are in it, in an order that stays.
func placesOf(root *any) []place {
	places := []place{{*root, func(v any) { *root = v }}}
	for i := 0; i < len(places); i++ {
		switch v := places[i].value.(type) {
		case []any:
			for n := range v {
				places = append(places, place{v[n], func(x any) { v[n] = x }})
			}
		case map[string]any:
			for _, name := range slices.Sorted(maps.Keys(v)) {
				places = append(places, place{v[name], func(x any) { v[name] = x }})
			}
		}
	}
	return places
}

// pretendedFacts stands for LookAtHost: what a path is follows from its name.
func pretendedFacts(spec *specs.Spec, rootless bool) *HostFacts {
	host := &HostFacts{CPUs: 2, Sources: map[string]Source{}, Devices: map[string]bool{}}
	if rootless {
		host.UID, host.GID, host.UserNamespace = 1000, 1000, true
	}
	for _, m := range spec.Mounts {
		if !isBind(&m) {
			continue
		}
		src := Source{Path: m.Source, Kind: SourceDirectory}
		if !filepath.IsAbs(m.Source) {
			src.Path = filepath.Join("/bundle", m.Source)
		}
		switch top := topDirectory(src.Path); {
		case top == "/missing":
			src.Kind = SourceMissing
		case top == "/proc" || top == "/sys" || path.Clean(src.Path) == "/dev":
			src.Kind, src.GuestPath = SourceGuest, guestCounterpart(src.Path)
		case top == "/dev" && strings.HasPrefix(src.Path, "/dev/shm"):
			src.Kind, src.SizeBytes = SourceShm, 64<<20
		case top == "/dev":
			src.Kind = SourceDevice
		case strings.HasSuffix(src.Path, ".conf"):
			src.Kind = SourceFile
		}
		host.Sources[m.Source] = src
	}
	if spec.Linux != nil {
		for _, d := range spec.Linux.Devices {
			host.Devices[deviceKey(d)] = d.Major < 100
		}
	}
	return host
}

// topDirectory is the first element of a path.
func topDirectory(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(filepath.Clean(path), "/"), "/")
	return "/" + first
}

// checkShape is about the VM.
func checkShape(t *testing.T, spec *specs.Spec, host *HostFacts, plan *Plan) {
	s := plan.Shape
	if s.MemoryMiB < minMemoryMiB || s.MemoryMiB > maxMemoryMiB {
		t.Errorf("MemoryMiB = %d, want %d to %d", s.MemoryMiB, minMemoryMiB, maxMemoryMiB)
	}
	if s.VCPUs < 1 {
		t.Errorf("VCPUs = %d, want at least 1", s.VCPUs)
	}
	if spec.VM == nil {
		limit := MemoryLimit(Resources(spec))
		if _, asked := spec.Annotations[AnnotationMemory]; !asked && limits(limit) && int64(s.MemoryMiB)<<20-limit < GuestRoomMiB<<20 {
			t.Errorf("MemoryMiB = %d, too little for the container's limit of %d bytes", s.MemoryMiB, limit)
		}
		if _, asked := spec.Annotations[AnnotationVCPUs]; !asked && s.VCPUs > host.CPUs {
			t.Errorf("VCPUs = %d, more than the host's %d", s.VCPUs, host.CPUs)
		}
	}
	if want := slices.Contains(allCapabilities(spec.Process), "CAP_SYS_ADMIN"); s.Privileged != want {
		t.Errorf("Privileged = %v, want %v", s.Privileged, want)
	}
	if s.Privileged && len(plan.DeviceFilter) > 0 {
		t.Error("a privileged container has a device filter")
	}
	if p := plan.Seccomp; p != nil && (len(p.Program) == 0 || len(p.Program)%8 != 0 || len(p.Program) > 8*4096) {
		t.Errorf("a seccomp filter of %d bytes", len(p.Program))
	}
	if d := plan.Scratch; d != nil && (!filepath.IsAbs(d.Path) || d.Path != path.Clean(d.Path) || d.Path == "/" || d.SizeMiB < minScratchMiB || d.SizeMiB > maxScratchMiB) {
		t.Errorf("Scratch = %+v", d)
	}
}

// checkBinds is about what of the host's the guest can reach: the rootfs and what
// config.json names, each by one mount that is as read-only as the share has it.
func checkBinds(t *testing.T, spec *specs.Spec, host *HostFacts, plan *Plan) {
	if len(plan.Binds) == 0 || plan.Binds[0].Name != RootfsName || plan.Binds[0].Source != "/bundle/rootfs" {
		t.Fatalf("Binds = %+v, want the rootfs first", plan.Binds)
	}
	if want := path.Join(guestproto.ShareDir, RootfsName); plan.Guest.Root.Path != want {
		t.Errorf("root.path = %q, want %q", plan.Guest.Root.Path, want)
	}
	shared := map[string]*Bind{} // by the guest's path
	for i := range plan.Binds {
		b := &plan.Binds[i]
		name := path.Join(guestproto.ShareDir, b.Name)
		if shared[name] != nil || !filepath.IsLocal(b.Name) {
			t.Errorf("the share's entry %q is there twice, or not below the share", b.Name)
		}
		shared[name] = b
		if i == 0 {
			continue
		}
		if !slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool {
			if b.Overlay != "" {
				return m.Type == "overlay" && m.Destination == b.Source
			}
			src := host.Sources[m.Source]
			return isBind(&m) && src.Path == b.Source && (src.Kind == SourceFile || src.Kind == SourceDirectory) && b.File == (src.Kind == SourceFile)
		}) {
			t.Errorf("bind %+v is no mount of config.json", *b)
		}
	}
	used := map[string]int{}
	for _, m := range plan.Guest.Mounts {
		if !isBind(&m) && (m.Type == "overlay" || m.Type == "cgroup") {
			t.Errorf("mount %+v is left to the guest", m)
		}
		if !isBind(&m) {
			continue
		}
		if b := shared[m.Source]; b != nil {
			used[m.Source]++
			if top, below := readOnly(m.Options); b.ReadOnly != top || b.Overlay == "" && b.ReadOnlyBelow != below {
				t.Errorf("mount %+v of %+v: one is read-only", m, *b)
			}
			continue
		}
		_, device := guestDevices[m.Source]
		if !device && !slices.ContainsFunc(spec.Mounts, func(given specs.Mount) bool {
			src := host.Sources[given.Source]
			return isBind(&given) && src.Kind == SourceGuest && src.GuestPath == m.Source
		}) {
			t.Errorf("mount %+v: the source is neither in the share nor the guest's", m)
		}
	}
	for name, b := range shared {
		if b != &plan.Binds[0] && used[name] != 1 {
			t.Errorf("the guest mounts %+v %d times, want once", *b, used[name])
		}
	}
}

// checkGuestSpec is about what stays on the host.
func checkGuestSpec(t *testing.T, spec *specs.Spec, host *HostFacts, plan *Plan) {
	g, l := plan.Guest, plan.Guest.Linux
	if g.VM != nil || l.CgroupsPath != "" || l.MountLabel != "" || l.Seccomp != nil {
		t.Errorf("the guest gets vm %+v, cgroupsPath %q, mountLabel %q, seccomp %+v", g.VM, l.CgroupsPath, l.MountLabel, l.Seccomp)
	}
	if got, want := Hooks(g), (&specs.Hooks{StartContainer: Hooks(spec).StartContainer}); !reflect.DeepEqual(got.StartContainer, want.StartContainer) ||
		len(got.CreateRuntime)+len(got.CreateContainer)+len(got.Poststart)+len(got.Poststop) > 0 {
		t.Errorf("hooks = %+v, want %+v", got, want)
	}
	for _, ns := range l.Namespaces {
		if ns.Type == specs.NetworkNamespace || ns.Path != "" {
			t.Errorf("the guest gets namespace %+v", ns)
		}
	}
	for _, d := range l.Devices {
		key := deviceKey(d)
		if d.Type != "p" && host.Devices[key] && !slices.Contains(slices.Collect(maps.Values(guestDevices)), key) {
			t.Errorf("the guest gets the host's device %+v", d)
		}
	}
	if r := l.Resources; r != nil && (r.Devices != nil || r.Network != nil || r.Rdma != nil) {
		t.Errorf("the guest gets resources %+v", r)
	}
	p := g.Process
	if p == nil {
		return
	}
	if p.SelinuxLabel != "" || p.ApparmorProfile != "" {
		t.Errorf("the guest gets label %q, profile %q", p.SelinuxLabel, p.ApparmorProfile)
	}
	for _, name := range allCapabilities(p) {
		if !knownCapabilities[name] {
			t.Errorf("the guest gets capability %q", name)
		}
	}
	if p.Capabilities != nil {
		for _, name := range p.Capabilities.Ambient {
			if !slices.Contains(p.Capabilities.Permitted, name) || !slices.Contains(p.Capabilities.Inheritable, name) {
				t.Errorf("ambient %s is not permitted and inheritable", name)
			}
		}
	}
}
