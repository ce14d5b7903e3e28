package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// config-vm.md: the kernel and the hypervisor that a container brings along.
func TestVMObject(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		kernel := filepath.Join(filepath.Dir(e.rt.bin), "vmlinux-net")
		object := func(s *specs.Spec) {
			vcpus, memory := uint32(1), uint64(300<<20)
			s.VM = &specs.VM{
				Hypervisor: specs.VMHypervisor{Path: "/usr/bin/qemu-system-x86_64", Parameters: []string{"-name", "brought"}},
				Kernel:     specs.VMKernel{Path: kernel, Parameters: []string{"brought.along=1"}},
				HwConfig:   &specs.HWConfig{VCPUs: &vcpus, Memory: &memory},
			}
		}
		b := h.bundle("vm", "uname -r; grep -o brought.along=1 /proc/cmdline; nproc; exec sleep 1000", object)
		c := h.create(b)
		c.start()
		h.expect(c.out, "brought.along=1\n1\n")
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		h.noErr(err)
		found := slices.ContainsFunc(lines, func(path string) bool {
			line, _ := os.ReadFile(path) // some have ended
			return strings.HasPrefix(string(line), "/usr/bin/qemu-system-x86_64\x00") && strings.HasSuffix(string(line), "\x00-name\x00brought\x00") &&
				strings.Contains(string(line), "\x00-m\x00300M") && strings.Contains(string(line), "\x00-kernel\x00"+kernel+"\x00")
		})
		if !found {
			h.Errorf("no QEMU runs with the kernel, the memory and the parameters of the vm object")
		}
		h.must("kill", b.id, "KILL")
		c.reaper.wait(c.pid)
		h.must("delete", b.id)
		if out := c.out.wait(); !strings.HasSuffix(out, "-net\nbrought.along=1\n1\n") {
			h.Errorf("output = %q, want the net kernel's release, its parameter and one processor", out)
		}

		b = h.bundle("vm-bad", "true", func(s *specs.Spec) { object(s); s.VM.Kernel.Path = "/no/such/kernel" })
		h.wantFail(`vm\.kernel\.path: /no/such/kernel is no file`, "create", "--bundle", b.dir, b.id)
	})
}

// Fields that runc 1.1 does not know yet.
func TestNewerFields(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("newer", "cut -d ' ' -f 19,41 /proc/self/stat; ionice -p $$; uname -m; cat /proc/sys/kernel/domainname; cut -d . -f 1 /proc/uptime; exec sleep 1000", func(s *specs.Spec) {
			s.Domainname = "example.org"
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 7_000_000}}
		})
		c := h.create(b)
		c.start()
		h.expect(c.out, "example.org\n70000")
		h.must("kill", b.id, "KILL")
		c.reaper.wait(c.pid)
		h.must("delete", b.id)
		const want = "5 3\nbest-effort: prio 6\ni686\nexample.org\n70000" // nice value, SCHED_BATCH, ... seconds of uptime
		if out := c.out.wait(); !strings.HasPrefix(out, want) {
			h.Errorf("output = %q, want %q first", out, want)
		}

		// Docker from 29.5 on asks for a time namespace without offsets.
		b = h.bundle("time", "cut -d . -f 1 /proc/uptime; exec sleep 1000", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		})
		c = h.create(b)
		c.start()
		h.expect(c.out, "\n")
		h.want("exec", h.must("exec", b.id, "readlink", "/proc/self/ns/time"), h.must("exec", b.id, "readlink", "/proc/1/ns/time"))
		h.must("kill", b.id, "KILL")
		c.reaper.wait(c.pid)
		h.must("delete", b.id)
	})
}
