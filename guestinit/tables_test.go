package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestMountOptions goes over every row and its recursive twin.
func TestMountOptions(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range mountOptions {
		if seen[o.name] {
			t.Errorf("%s has two rows", o.name)
		}
		seen[o.name] = true
		plan := planMount([]string{o.name})
		if plan.attrs.Attr_set != o.set || plan.attrs.Attr_clr&o.clear != o.clear {
			t.Errorf("planMount(%s) = %+v", o.name, plan.attrs)
		}
		if len(plan.parameters) > 0 && plan.parameters[0].key != o.flag {
			t.Errorf("planMount(%s) hands the file system %v", o.name, plan.parameters)
		}
		if o.set|o.clear == 0 {
			continue
		}
		plan = planMount([]string{"r" + o.name})
		if plan.recursive.Attr_set != o.set || plan.attrs != (unix.MountAttr{}) || len(plan.parameters) > 0 {
			t.Errorf("planMount(r%s) = %+v", o.name, plan)
		}
	}
	for name, want := range map[string]uintptr{
		"rshared": unix.MS_SHARED | unix.MS_REC, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
		"private": unix.MS_PRIVATE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
	} {
		plan := planMount([]string{name})
		if len(plan.propagation) != 1 || plan.propagation[0] != want || propagations[name] != want {
			t.Errorf("%s = %#x and %#x, want %#x", name, plan.propagation, propagations[name], want)
		}
	}
}

func TestPlanMount(t *testing.T) {
	plan := planMount([]string{"ro", "nosuid", "rw", "noatime", "rro", "size=1m", "", "mode=700", "sync", "rbind"})
	want := unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOATIME,
		Attr_clr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR__ATIME,
	}
	if plan.attrs != want {
		t.Errorf("attributes = %+v, want %+v", plan.attrs, want)
	}
	if plan.recursive.Attr_set != unix.MOUNT_ATTR_RDONLY || plan.bind != unix.MS_BIND|unix.MS_REC {
		t.Errorf("plan = %+v", plan)
	}
	if got := strings.Join([]string{plan.parameters[0].String(), plan.parameters[1].String(), plan.parameters[2].String()}, ","); got != "size=1m,mode=700,sync" {
		t.Errorf("parameters = %s", got)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for path, mode := range map[string]os.FileMode{"bin/run": 0o755, "sbin/run": 0o755, "sbin/other": 0o755, "bin/other": 0o644} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		writeTestFile(t, path, nil, mode)
	}
	path := dir + "/none:" + dir + "/bin:" + dir + "/sbin"
	for _, c := range []struct{ name, path, cwd, want, err string }{
		{"run", path, "/", dir + "/bin/run", ""},
		{"other", path, "/", dir + "/sbin/other", ""},
		{"none", path, "/", "", `exec: "none": executable file not found in $PATH`},
		{"", path, "/", "", `exec: "": executable file not found in $PATH`},
		{"run", "", "/", "", `exec: "run": executable file not found in $PATH`},
		{"bin/run", path, dir, "bin/run", ""},
		{"./run", path, dir + "/bin", "./run", ""},
		{"./run", path, dir, "", `exec: "./run": stat ./run: no such file or directory`},
		{"run", ":" + dir, dir + "/bin", "", `exec: "run": cannot run executable found relative to current directory`},
		{dir + "/bin/run", "", "/", dir + "/bin/run", ""},
		{dir + "/bin", "", "/", "", `exec: "` + dir + `/bin": permission denied`},
		{dir + "/bin/other", "", "/", "", `exec: "` + dir + `/bin/other": permission denied`},
		{dir + "/bin/run/x", "", "/", "", `exec: "` + dir + `/bin/run/x": stat ` + dir + `/bin/run/x: not a directory`},
	} {
		got, err := lookPath(c.name, c.path, c.cwd)
		if got != c.want || (err == nil) != (c.err == "") || (err != nil && err.Error() != c.err) {
			t.Errorf("lookPath(%q, %q, %q) = %q, %v; want %q, %s", c.name, c.path, c.cwd, got, err, c.want, c.err)
		}
	}
}

func TestHome(t *testing.T) {
	const passwd = "# comment\nbad line\nroot:x:0:0::/root:\nempty:x:5:5:::/bin/sh\nuser:x:1000:1000:A, B:/home/user:/bin/sh\n"
	for uid, want := range map[uint32]string{0: "/root", 5: "/", 1000: "/home/user", 7: "/"} {
		if got := homeOf(strings.NewReader(passwd), uid); got != want {
			t.Errorf("home of %d = %q, want %q", uid, got, want)
		}
	}
	if got := withHome([]string{"HOME=/x"}, 0); len(got) != 1 {
		t.Errorf("withHome changes a HOME that is set: %q", got)
	}
}

func TestCgroupSettings(t *testing.T) {
	weight := uint16(500)
	for _, c := range []struct {
		name string
		in   specs.LinuxResources
		want string
	}{
		{"nothing", specs.LinuxResources{}, ""},
		{
			"memory",
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(100)), Swap: new(int64(150)), Reservation: new(int64(50))}},
			"memory.swap.max=50 memory.max=100 memory.low=50",
		},
		{"no swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(100)), Swap: new(int64(100))}}, "memory.swap.max=0 memory.max=100"},
		{"unlimited", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(-1)), Swap: new(int64(-1))}}, "memory.swap.max=max memory.max=max"},
		{
			"cpu",
			specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(uint64(1024)), Quota: new(int64(50000)), Period: new(uint64(200000)), Cpus: "0-1", Mems: "0"}},
			"cpu.weight=100 cpu.max=50000 200000 cpuset.cpus=0-1 cpuset.mems=0",
		},
		{"quota alone", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(50000))}}, "cpu.max=50000 100000"},
		{"period alone", specs.LinuxResources{CPU: &specs.LinuxCPU{Period: new(uint64(50000))}}, "cpu.max=max 50000"},
		{"idle", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: new(int64(1)), Shares: new(uint64(2))}}, "cpu.idle=1"},
		{"pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(-1))}}, "pids.max=max"},
		{"io", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: &weight, ThrottleWriteBpsDevice: []specs.LinuxThrottleDevice{
			{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 254, Minor: 0}, Rate: 7},
		}}}, "io.bfq.weight=500 io.weight=4950 io.max=254:0 wbps=7"},
		{"hugetlb", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 9}}}, "hugetlb.2MB.max=9 hugetlb.2MB.rsvd.max=9"},
		{"unified", specs.LinuxResources{Unified: map[string]string{"pids.max": "3", "memory.high": "5"}}, "memory.high=5 pids.max=3"},
	} {
		settings, err := cgroupSettings(&c.in)
		var got []string
		for _, s := range settings {
			got = append(got, s.file+"="+s.value)
		}
		if text := strings.Join(got, " "); err != nil || text != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, text, err, c.want)
		}
	}
	if _, err := cgroupSettings(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(100)), Swap: new(int64(50))}}); err == nil {
		t.Error("swap below memory: no error")
	}
}

func TestCPUWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := cpuWeight(shares); got != want {
			t.Errorf("cpuWeight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestProcFiles(t *testing.T) {
	got := parseTable("low 0\nmax 12\noom_kill 2\nodd\nnegative -1\nword max\n")
	if len(got) != 3 || got["low"] != 0 || got["max"] != 12 || got["oom_kill"] != 2 {
		t.Errorf("parseTable = %v, want low, max and oom_kill", got)
	}
	for text, want := range map[string]bool{
		"MemFree: 5 kB\nDirty:                 0 kB\nWriteback:             0 kB\nWritebackTmp:          0 kB\n": false,
		"Dirty:                 4 kB\n": true,
		"WritebackTmp:          8 kB\n": true,
	} {
		if got := hasDirtyPages(text); got != want {
			t.Errorf("hasDirtyPages(%q) = %v", text, got)
		}
	}
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":               "/proc/sys/net/ipv4/ip_forward",
		"net/ipv4/conf/eth0.100/forwarding": "/proc/sys/net/ipv4/conf/eth0.100/forwarding",
		"net.ipv4.conf.eth0/100.forwarding": "/proc/sys/net/ipv4/conf/eth0.100/forwarding",
		"kernel.shm_rmid_forced":            "/proc/sys/kernel/shm_rmid_forced",
		"../../proc/self/oom_score_adj":     "/proc/sys/",
	} {
		if got := sysctlPath(key); got != want && want != "/proc/sys/" {
			t.Errorf("sysctlPath(%s) = %s, want %s", key, got, want)
		} else if strings.Contains(got, "..") {
			t.Errorf("sysctlPath(%s) = %s leads elsewhere", key, got)
		}
	}
}

func TestCapabilities(t *testing.T) {
	if len(capabilityNames) != 41 || capabilityNames[unix.CAP_SYS_ADMIN] != "CAP_SYS_ADMIN" || capabilityNames[unix.CAP_CHECKPOINT_RESTORE] != "CAP_CHECKPOINT_RESTORE" {
		t.Errorf("the names are out of step with the kernel's numbers")
	}
	sets, err := parseCapabilities(&specs.LinuxCapabilities{Bounding: capabilityNames, Ambient: []string{"CAP_CHOWN", "CAP_KILL"}})
	if err != nil || sets.bounding != allCapabilities || sets.ambient != 1<<unix.CAP_CHOWN|1<<unix.CAP_KILL || sets.effective != 0 {
		t.Errorf("sets = %+v, %v", sets, err)
	}
	if _, err := parseCapabilities(&specs.LinuxCapabilities{Bounding: []string{"CAP_CAP_CHOWN"}}); err == nil {
		t.Error("unknown name: no error")
	}
}

func TestIDMaps(t *testing.T) {
	maps := idMaps{uids: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65535}}}
	for id, want := range map[uint32]int{0: 1000, 1: 100000, 65535: 165534, 65536: overflowID} {
		if got := maps.uid(id); got != want {
			t.Errorf("uid(%d) = %d, want %d", id, got, want)
		}
	}
	if got := (idMaps{}).gid(5); got != 5 {
		t.Errorf("gid(5) without mappings = %d", got)
	}
	if got := formatIDMap(maps.uids); got != "0 1000 1\n1 100000 65535\n" {
		t.Errorf("formatIDMap = %q", got)
	}
}
