package hostcgroup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestPathForms(t *testing.T) {
	for name, tc := range map[string]struct {
		in   Config
		want cgroups.Cgroup
		err  string
	}{
		"absolute":           {in: Config{Path: "/docker/c1", ID: "c1"}, want: cgroups.Cgroup{Path: "/docker/c1"}},
		"relative":           {in: Config{Path: "a/b", ID: "c1"}, want: cgroups.Cgroup{Path: "a/b"}},
		"empty":              {in: Config{ID: "c1"}, want: cgroups.Cgroup{Name: "c1"}},
		"systemd":            {in: Config{Path: "system.slice:docker:c1", ID: "c1", Systemd: true}, want: cgroups.Cgroup{Parent: "system.slice", ScopePrefix: "docker", Name: "c1", Systemd: true}},
		"systemd, no slice":  {in: Config{Path: ":crio:c1", ID: "c1", Systemd: true}, want: cgroups.Cgroup{ScopePrefix: "crio", Name: "c1", Systemd: true}},
		"systemd, empty":     {in: Config{ID: "c1", Systemd: true}, want: cgroups.Cgroup{ScopePrefix: "boxlite", Name: "c1", Systemd: true}},
		"systemd, not three": {in: Config{Path: "/docker/c1", ID: "c1", Systemd: true}, err: "slice:prefix:name"},
		"rootless":           {in: Config{ID: "c1", Rootless: true}, want: cgroups.Cgroup{Name: "c1", Rootless: true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.in.forManager()
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("forManager = %+v, %v, want error %q", got, err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got.Resources = nil
			if fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", tc.want) {
				t.Errorf("forManager = %+v, want %+v", *got, tc.want)
			}
		})
	}
}

// sleeper is a process to put into cgroups.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		if cmd.ProcessState == nil {
			cmd.Wait()
		}
	})
	return cmd
}

// newTestCgroup is in a parent of the test's own that goes with the test.
func newTestCgroup(t *testing.T, name string) *Cgroup {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	parent := fmt.Sprintf("/boxlite-test-%d", os.Getpid())
	c, err := New(Config{Path: parent + "/" + name, ID: name})
	if err != nil {
		t.Skipf("no cgroups that can be used: %v", err)
	}
	t.Cleanup(func() {
		for _, path := range c.Paths() {
			if err := cgroups.RemovePath(filepath.Dir(path)); err != nil {
				t.Errorf("left behind: %v", err)
			}
		}
	})
	return c
}

// file reads one of the cgroup's files, in either version.
func file(t *testing.T, c *Cgroup, controller, v1, v2 string) string {
	t.Helper()
	paths := c.Paths()
	path := filepath.Join(paths[controller], v1)
	if cgroups.IsCgroup2UnifiedMode() {
		path = filepath.Join(paths[""], v2)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// A process would stand still in a cgroup that is frozen, and in one below it.
func TestCheckMoving(t *testing.T) {
	around := newTestCgroup(t, "frozen")
	if err := around.Apply(sleeper(t).Process.Pid); err != nil {
		t.Fatal(err)
	}
	if around.Others() != 0 {
		t.Errorf("a new cgroup had %d processes", around.Others())
	}
	if err := around.Freeze(); err != nil {
		t.Fatal(err)
	}
	for _, below := range []string{"", "/a", "/a/b"} {
		c, err := New(Config{Path: around.config.Path + below, ID: "c"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CheckMoving(); err == nil || !strings.Contains(err.Error(), "unexpectedly frozen") {
			t.Errorf("CheckMoving at %q of a frozen cgroup: %v", below, err)
		}
	}
	if err := around.Thaw(); err != nil {
		t.Fatal(err)
	}
	again, err := New(around.config)
	if err == nil {
		err = errors.Join(again.CheckMoving(), again.Apply(sleeper(t).Process.Pid))
	}
	if err != nil || again.Others() != 1 {
		t.Errorf("after Thaw: CheckMoving and Apply = %v, Others = %d, want nil and 1", err, again.Others())
	}
}

func TestLife(t *testing.T) {
	c := newTestCgroup(t, "life")
	first, second := sleeper(t), sleeper(t)
	if err := c.Apply(first.Process.Pid); err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	limits := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "rw"}},
		Memory:  &specs.LinuxMemory{Limit: new(int64(64 * mib))},
		CPU:     &specs.LinuxCPU{Shares: new(uint64(512)), Cpus: "0"},
		Pids:    &specs.LinuxPids{Limit: new(int64(20))},
	}
	if err := c.Set(limits, Overhead{MemoryBytes: 192 * mib, Pids: 100}); err != nil {
		t.Fatal(err)
	}
	if got, want := file(t, c, "memory", "memory.limit_in_bytes", "memory.max"), fmt.Sprint(256*mib); got != want {
		t.Errorf("memory limit = %s, want %s", got, want)
	}
	if got := file(t, c, "pids", "pids.max", "pids.max"); got != "120" {
		t.Errorf("pids limit = %s, want 120", got)
	}
	if got := file(t, c, "cpuset", "cpuset.cpus", "cpuset.cpus"); got != "0" {
		t.Errorf("cpus = %s, want 0", got)
	}
	checkDevices := func() {
		t.Helper()
		if cgroups.IsCgroup2UnifiedMode() {
			return // a BPF program, not a file
		}
		list := strings.Split(file(t, c, "devices", "devices.list", ""), "\n")
		for _, want := range []string{"c 10:229 rw", "c 10:232 rwm", "c 10:200 rwm", "c 1:3 rwm"} {
			if !slices.Contains(list, want) {
				t.Errorf("devices = %q, want %q among them", list, want)
			}
		}
		if slices.Contains(list, "a *:* rwm") {
			t.Error("every device is allowed")
		}
	}
	checkDevices()

	// As another process of ours finds it again.
	raw, err := json.Marshal(c.State())
	if err != nil {
		t.Fatal(err)
	}
	var state State
	if err := json.Unmarshal(raw, &state); err != nil {
		t.Fatal(err)
	}
	again, err := Load(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Apply(second.Process.Pid); err != nil {
		t.Fatal(err)
	}
	pids, err := again.Pids()
	slices.Sort(pids)
	want := []int{first.Process.Pid, second.Process.Pid}
	slices.Sort(want)
	if err != nil || !slices.Equal(pids, want) {
		t.Errorf("Pids = %v, %v, want %v", pids, err, want)
	}

	// An update leaves alone what it does not name.
	if err := again.Set(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(30))}}, Overhead{Pids: 100}); err != nil {
		t.Fatal(err)
	}
	if got := file(t, c, "pids", "pids.max", "pids.max"); got != "130" {
		t.Errorf("pids limit after update = %s, want 130", got)
	}
	if got, want := file(t, c, "memory", "memory.limit_in_bytes", "memory.max"), fmt.Sprint(256*mib); got != want {
		t.Errorf("memory limit after update = %s, want %s", got, want)
	}
	checkDevices()

	if err := again.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := first.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { first.Wait(); close(ended) }()
	if !cgroups.IsCgroup2UnifiedMode() { // version 2 lets a kill through
		select {
		case <-ended:
			t.Error("a frozen process could be killed")
		case <-time.After(50 * time.Millisecond):
		}
	}
	for range 2 {
		if err := again.Thaw(); err != nil {
			t.Fatal(err)
		}
	}
	<-ended

	// The second process is about to leave, not gone.
	gone := make(chan struct{})
	go func() {
		time.Sleep(700 * time.Millisecond)
		second.Process.Kill()
		second.Wait()
		close(gone)
	}()
	defer func() { <-gone }()
	for range 2 {
		if err := again.Destroy(); err != nil {
			t.Errorf("Destroy = %v", err)
		}
	}
	for _, path := range c.Paths() {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after Destroy: %v", path, err)
		}
	}
	if pids, err := again.Pids(); err != nil || len(pids) > 0 {
		t.Errorf("Pids after Destroy = %v, %v, want none", pids, err)
	}
	if late, err := Load(state); err != nil {
		t.Errorf("Load after Destroy = %v", err)
	} else if err := late.Destroy(); err != nil {
		t.Errorf("Destroy after Load = %v", err)
	}
}

// A relative path, and the id for want of any, is under the caller's own
// cgroup; with cgroup 2, where no process may be in an inner one, beside it.
func TestRelativePath(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	name := fmt.Sprintf("boxlite-test-relative-%d", os.Getpid())
	for _, config := range []Config{{ID: name}, {ID: "c1", Path: "a/../" + name}, {ID: "c1", Path: "../" + name}} {
		c, err := New(config)
		if err != nil {
			t.Skipf("no cgroups that can be used: %v", err)
		}
		process := sleeper(t)
		if err := c.Apply(process.Process.Pid); err != nil {
			t.Fatal(err)
		}
		own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", process.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for controller := range c.Paths() {
			parent := own[controller]
			if cgroups.IsCgroup2UnifiedMode() {
				parent = filepath.Dir(parent)
			}
			if want := filepath.Join(parent, name); theirs[controller] != want {
				t.Errorf("%+v: %s cgroup = %s, want %s", config, controller, theirs[controller], want)
			}
		}
		process.Process.Kill()
		process.Wait()
		if err := c.Destroy(); err != nil {
			t.Errorf("Destroy = %v", err)
		}
	}
}

func TestDestroyLeavesForeign(t *testing.T) {
	c := newTestCgroup(t, "foreign")
	stranger, ours := sleeper(t), sleeper(t)
	var taken string
	for _, path := range c.Paths() {
		if strings.Contains(path, "/pids/") || cgroups.IsCgroup2UnifiedMode() {
			taken = path
		}
	}
	if taken == "" {
		t.Skip("no pids controller")
	}
	if err := os.MkdirAll(taken, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := cgroups.WriteCgroupProc(taken, stranger.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(ours.Process.Pid); err != nil {
		t.Fatal(err)
	}
	ours.Process.Kill()
	ours.Wait()
	again, err := Load(c.State())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Destroy(); err != nil {
		t.Errorf("Destroy = %v", err)
	}
	for _, path := range c.Paths() {
		_, err := os.Stat(path)
		if path == taken && err != nil || path != taken && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after Destroy: %v", path, err)
		}
	}
	stranger.Process.Kill()
	stranger.Wait()
}

// Without the controllers of cgroup 2 its files cannot be written, which has
// to be said.
func TestUnifiedNeedsVersion2(t *testing.T) {
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("this is cgroup 2")
	}
	c := newTestCgroup(t, "unified")
	if err := c.Apply(sleeper(t).Process.Pid); err != nil {
		t.Fatal(err)
	}
	err := c.Set(&specs.LinuxResources{Unified: map[string]string{"memory.high": "max"}}, Overhead{})
	if !errors.Is(err, cgroups.ErrV1NoUnified) {
		t.Errorf("Set = %v, want %v", err, cgroups.ErrV1NoUnified)
	}
}

func TestDeviceRulesKeepTheirOrder(t *testing.T) {
	c := newTestCgroup(t, "devices")
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("version 2 has a BPF program instead of a list")
	}
	if err := c.Apply(sleeper(t).Process.Pid); err != nil {
		t.Fatal(err)
	}
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "rwm"},
		{Allow: true, Type: "b", Major: new(int64(8)), Minor: new(int64(20)), Access: "rw"},
		{Allow: true, Type: "b", Major: new(int64(7)), Access: "r"},
	}
	if err := c.Set(&specs.LinuxResources{Devices: rules}, Overhead{}); err != nil {
		t.Fatal(err)
	}
	list := strings.Split(file(t, c, "devices", "devices.list", ""), "\n")
	if want := []string{"c 10:229 rwm", "b 8:20 rw", "b 7:* r"}; len(list) < 4 || !slices.Equal(list[:3], want) {
		t.Errorf("devices = %q, want %q first and the VMM's after them", list, want)
	}
	if !slices.Contains(list, "c 10:232 rwm") {
		t.Errorf("devices = %q, want the VMM's among them", list)
	}
}

// The limit around a cgroup can be read before there is the cgroup, as long as there is what is around.
func TestMemoryLimitAround(t *testing.T) {
	c := newTestCgroup(t, "inner")
	outer := filepath.Dir(c.MemoryDir())
	if got, err := c.MemoryLimitAround(); err != nil || got != 0 {
		t.Errorf("MemoryLimitAround of nothing = %d, %v, want 0", got, err)
	}
	if err := c.Apply(sleeper(t).Process.Pid); err != nil {
		t.Fatal(err)
	}
	if got, err := c.MemoryLimitAround(); err != nil || got != 0 && got < 1<<60 {
		t.Errorf("MemoryLimitAround of no limit = %d, %v, want 0, or beyond all memory", got, err)
	}
	const want = 256 << 20
	name := "memory.limit_in_bytes"
	if cgroups.IsCgroup2UnifiedMode() {
		name = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(outer, name), fmt.Append(nil, want), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := c.MemoryLimitAround(); err != nil || got != want {
		t.Errorf("MemoryLimitAround = %d, %v, want %d", got, err, want)
	}
}

func TestProcessorsAround(t *testing.T) {
	c := newTestCgroup(t, "inner")
	if err := c.Apply(sleeper(t).Process.Pid); err != nil {
		t.Fatal(err)
	}
	outer := filepath.Join(filepath.Dir(c.Paths()["cpu"]), "cpu.cfs_quota_us")
	if cgroups.IsCgroup2UnifiedMode() {
		outer = filepath.Join(filepath.Dir(c.Paths()[""]), "cpu.max")
	}
	for _, tc := range []struct {
		quota string
		want  int
	}{{"", 0}, {"50000", 1}, {"100000", 1}, {"110000", 2}} {
		if tc.quota != "" {
			if err := os.WriteFile(outer, []byte(tc.quota), 0); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := c.ProcessorsAround(); err != nil || got != tc.want {
			t.Errorf("ProcessorsAround with a quota of %q in 100000 = %d, %v, want %d", tc.quota, got, err, tc.want)
		}
	}
}
