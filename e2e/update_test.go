package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestUpdateThroughDocker(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("--memory", "64m", "--memory-swap", "64m", "busybox", "sleep", "1000")
		e.wantCode(e.docker("exec", id, "probe", "hog", "300"), 137)
		// Far beyond the VM's size so far.
		e.ok("update", "--memory", "1g", "--memory-swap", "1g", id)
		e.wantPart("hog within the raised limit", e.exec(id, "probe", "hog", "600"), "touched 592")
		e.ok("update", "--memory", "128m", "--memory-swap", "128m", "--pids-limit", "30", "--cpus", "0.5", id)
		e.wantCode(e.docker("exec", id, "probe", "hog", "300"), 137)
		e.wantPart("fork within the new limit", e.exec(id, "probe", "fork", "100"), "refused after")
		for name, want := range map[string]string{"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"} {
			e.want(name, e.hostCgroup(id, name), want)
		}
		e.ok("rm", "-f", id)
	})
}

// hostCgroup reads a file, CONTROLLER/NAME, of a container's cgroup on the host.
func (e *env) hostCgroup(id, name string) string {
	e.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", filepath.Dir(name), tag, id, filepath.Base(name)))
	e.noErr(err)
	return strings.TrimSpace(string(text))
}

func TestUpdateByHand(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("update", "sleep 1000", func(s *specs.Spec) {
			s.Linux.Resources.CPU = &specs.LinuxCPU{Period: new(uint64)}
			*s.Linux.Resources.CPU.Period = 50000
		})
		c := h.create(b)
		h.must("update", "--cpu-quota", "20000", "--cpu-share", "512", b.id) // of a created one
		c.start()
		h.wantCode(h.cmdIn(strings.NewReader(`{"pids":{"limit":25},"cpu":{"cpus":"0","shares":0},"network":{"classID":7}}`), "update", "--resources", "-", b.id), 0)
		h.noErr(os.WriteFile(filepath.Join(b.dir, "update.json"), []byte(`{"memory":{"limit":100000000,"swap":100000000}}`), 0o600))
		h.must("update", "-r", filepath.Join(b.dir, "update.json"), b.id)
		for name, want := range map[string]string{
			"cpu/cpu.cfs_quota_us": "20000", "cpu/cpu.cfs_period_us": "50000", "cpu/cpu.shares": "512", "cpuset/cpuset.cpus": "0",
		} {
			h.want(name, h.hostCgroup(b.id, name), want)
		}
		h.wantPart("fork", h.must("exec", b.id, "probe", "fork", "100"), "refused after")
		h.wantCode(h.cmd("exec", b.id, "probe", "hog", "300"), 137)

		// What is in use cannot be taken away.
		h.must("exec", b.id, "sh", "-c", "head -c 30000000 /dev/zero >/dev/shm/full")
		h.wantFail("unable to set memory limit to 8003584 .current usage: ", "update", "--memory", "8003584", "--memory-swap", "8003584", b.id)
		h.wantStatus(b.id, specs.StateRunning)
		h.must("exec", b.id, "rm", "/dev/shm/full")

		// No limit of memory is none of memory and swap either.
		h.must("update", "--memory", "-1", b.id)
		h.wantCode(h.cmd("exec", b.id, "probe", "hog", "110"), 0)
		h.must("update", "-r", filepath.Join(b.dir, "update.json"), b.id)

		h.wantFail("invalid value for memory", "update", "--memory", "much", b.id)
		h.wantFail("invalid value for cpu-quota", "update", "--cpu-quota", "all", b.id)
		h.wantFail("no such file", "update", "--resources", "/nosuch", b.id)
		if h.rt.isVM() {
			inside := h.must("exec", b.id, "sh", "-c", "cd /sys/fs/cgroup; cat cpu.max memory.max memory.swap.max pids.max; nproc")
			h.want("the guest's limits", inside, "20000 50000\n99999744\n0\n25\n1\n")
			h.wantFail("memory: a VM of .* MiB: it can grow by .* at most", "update", "--memory", "9000g", "--memory-swap", "9000g", b.id)
			h.want("a refused limit", h.must("exec", b.id, "cat", "/sys/fs/cgroup/memory.max"), "99999744\n")
			h.must("pause", b.id)
			h.wantFail("a paused container cannot be updated", "update", "--memory", "1g", b.id)
		}
		h.must("kill", b.id, "KILL")
		h.waitStatus(b.id, specs.StateStopped)
		h.wantFail("container not running", "update", "--pids-limit", "5", b.id)
	})
}
