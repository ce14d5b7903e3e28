package hostcgroup

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

const ringVar = "HOSTCGROUP_TEST_RING"

// TestMain is also the process that rings, in a cgroup of its own.
func TestMain(m *testing.M) {
	dir := os.Getenv(ringVar)
	if dir == "" {
		os.Exit(m.Run())
	}
	err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	if err == nil {
		var bell *OOMBell
		if bell, err = OpenOOMBell(dir); err == nil {
			err = bell.Ring()
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// Who watches the cgroup as containerd's shim and conmon do learns of it, and
// the process that rings lives on. Whom the kernel kills depends on the moment: a
// bell that had one victim killed its ringer once in 50 times.
func TestOOMBell(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes cgroups, which needs root")
	}
	root := "/sys/fs/cgroup/memory"
	if cgroups.IsCgroup2UnifiedMode() {
		root = "/sys/fs/cgroup"
	}
	for i := range 30 {
		dir := filepath.Join(root, fmt.Sprintf("boxlite-test-oom-%d-%d", os.Getpid(), i))
		if !ringsOnce(t, dir, true) {
			t.Fatalf("ring %d failed", i)
		}
	}
}

// Where the OOM killer is off, which version 2 does not have, the kernel tells and kills nothing.
func TestOOMBellWithoutKiller(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes cgroups, which needs root")
	}
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("this is cgroup 2")
	}
	began := time.Now()
	ringsOnce(t, fmt.Sprintf("/sys/fs/cgroup/memory/boxlite-test-oom-%d-off", os.Getpid()), false)
	if took := time.Since(began); took >= ringPatience {
		t.Errorf("it took %v: not until the kernel told, but for as long as the bell waits", took)
	}
}

func ringsOnce(t *testing.T, dir string, kills bool) bool {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if !kills {
		if err := os.WriteFile(filepath.Join(dir, "memory.oom_control"), []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if err := unix.Rmdir(dir); err != nil {
			t.Error(err)
		}
	}()
	limit := filepath.Join(dir, "memory.max")
	if !cgroups.IsCgroup2UnifiedMode() {
		limit = filepath.Join(dir, "memory.limit_in_bytes")
	}
	before := readTestFile(t, limit)
	told := watchOOM(t, dir)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), ringVar+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the process that rings: %v: %s", err, out)
	}
	if n := told(); n == 0 {
		t.Error("who watches the cgroup has not been told")
	}
	if after := readTestFile(t, limit); after != before {
		t.Errorf("the limit was %s and is %s", before, after)
	}
	return !t.Failed()
}

// watchOOM returns a function that says how often the kernel has told of a kill.
func watchOOM(t *testing.T, dir string) func() uint64 {
	t.Helper()
	if cgroups.IsCgroup2UnifiedMode() {
		return func() uint64 {
			_, rest, _ := strings.Cut(readTestFile(t, filepath.Join(dir, "memory.events")), "oom_kill ")
			n, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(event) })
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), fmt.Appendf(nil, "%d %d", event, control.Fd()), 0); err != nil {
		t.Fatal(err)
	}
	return func() uint64 {
		buf := make([]byte, 8)
		if _, err := unix.Read(event, buf); err != nil {
			return 0
		}
		return binary.NativeEndian.Uint64(buf)
	}
}

func readTestFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
