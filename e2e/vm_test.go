package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Kernel, memory and processors of the VM: from the spec's limits, over them the annotations, over these the flags.
func TestShapeOfTheVM(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		const script = `echo "kernel=$(uname -r)"; echo "cpus=$(nproc)"; echo "mem=$(awk '/MemTotal/{print int($2/1024)}' /proc/meminfo)"`
		for _, c := range []struct {
			name        string
			annotations map[string]string
			flags       []string
			edit        func(*specs.Spec)
			kernel      string
			cpus        int
			minMiB      int // of MemTotal, which lacks what the kernel keeps
			maxMiB      int
		}{
			{"default", nil, nil, nil, "lean", 0, 800, 1024},
			{"annotated", map[string]string{"boxlite.kernel": "net", "boxlite.memory": "512", "boxlite.vcpus": "1"}, nil, nil, "net", 1, 380, 512},
			{
				"flags",
				map[string]string{"boxlite.kernel": "net", "boxlite.memory": "512", "boxlite.vcpus": "1"},
				[]string{"--kernel", "lean", "--vm-memory", "768", "--vcpus", "2"},
				nil, "lean", 2, 600, 768,
			},
			{"limits", nil, nil, func(s *specs.Spec) {
				quota, period, limit := int64(50000), uint64(100000), int64(700<<20)
				s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
				s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
			}, "lean", 1, 700, 1100},
		} {
			b := h.bundle("shape-"+c.name, script, func(s *specs.Spec) {
				s.Annotations = c.annotations
				if c.edit != nil {
					c.edit(s)
				}
			})
			r := h.cmd(append(append([]string{}, c.flags...), "run", "--bundle", b.dir, b.id)...)
			h.wantCode(r, 0)
			got := parseReport(r.stdout)
			if !strings.HasSuffix(got["kernel"], "-boxlite-"+c.kernel) {
				h.Errorf("%s: kernel %q, want %s", c.name, got["kernel"], c.kernel)
			}
			if c.cpus != 0 {
				h.want(c.name+": cpus", got["cpus"], itoa(c.cpus))
			}
			if mem, err := strconv.Atoi(got["mem"]); err != nil || mem < c.minMiB || mem > c.maxMiB {
				h.Errorf("%s: MemTotal %q MiB, want %d to %d", c.name, got["mem"], c.minMiB, c.maxMiB)
			}
		}
		b := h.bundle("shape-bad", "true", func(s *specs.Spec) { s.Annotations = map[string]string{"boxlite.memory": "much"} })
		h.wantFail("boxlite.memory.*much", "create", "--bundle", b.dir, b.id)
		b = h.bundle("shape-no-kernel", "true", func(s *specs.Spec) { s.Annotations = map[string]string{"boxlite.kernel": "nosuch"} })
		h.wantFail("nosuch", "create", "--bundle", b.dir, b.id)
	})
}

func TestCheck(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		h.root = ""
		r := h.cmd("check")
		h.wantCode(r, 0)
		for _, part := range []string{"qemu", "virtiofsd", "kvm", "/dev/net/tun", "lean", "net", "cgroup"} {
			h.wantPart("check", strings.ToLower(r.stdout), part)
		}
		var report struct {
			Checks []struct{ What, State, Found, Advice string }
			Advice string
		}
		if err := json.Unmarshal([]byte(h.must("check", "--json")), &report); err != nil || len(report.Checks) < 10 || report.Checks[0].State != "ok" {
			h.Errorf("check --json = %+v, %v", report, err)
		}
		r = h.cmd("--virtiofsd", "/no/such/virtiofsd", "check")
		h.wantCode(r, 1)
		h.wantPart("check", r.stdout, "Most worth doing: virtiofsd: ")
	})
}

// spec writes a bundle's config.json that the runtime itself takes, and never over another.
func TestSpec(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("spec", "true", nil)
		path := filepath.Join(b.dir, "config.json")
		h.wantFail("(?i)exists", "spec", "--bundle", b.dir)
		h.noErr(os.Remove(path))
		h.must("spec", "--bundle", b.dir)
		text, err := os.ReadFile(path)
		h.noErr(err)
		text = regexp.MustCompile(`"args": \[\s*"sh"\s*\]`).ReplaceAll(text, []byte(`"args": ["sh", "-c", "echo ran; touch /x; exit 4"]`))
		text = regexp.MustCompile(`"terminal": true`).ReplaceAll(text, []byte(`"terminal": false`))
		h.noErr(os.WriteFile(path, text, 0o644))
		r := h.cmd("run", "--bundle", b.dir, b.id)
		h.wantCode(r, 4)
		h.want("stdout", r.stdout, "ran\n")
		h.wantPart("the root is read-only", r.stderr, "Read-only file system")
	})
}

// Pages of program files come and go, and what is executed is what was read last: an emulated processor has translations of
// former contents, and the VM's files are not written into memory by the emulator.
func TestProgramsReadAgain(t *testing.T) {
	eachVM(t, func(e *env) {
		// Two programs that are linked to the same addresses.
		r := e.run("--privileged", "busybox", "sh", "-c", `
for i in $(seq 100); do
	echo 3 >/proc/sys/vm/drop_caches
	r=$(probe syscall personality 0) && [ "$r" = ok ] || echo "time $i: exit status $?: $r"
	busybox wc -c /etc/none 2>/dev/null
done; echo end`)
		e.wantCode(r, 0)
		e.want("stdout", r.stdout, "end\n")
	})
}

// Until boxlite's own kernels are compiled, Debian's stands in for both of them.
func TestKernelOfDebian(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		parts, err := filepath.Abs("../bin/prebuilt")
		h.noErr(err)
		h.flags = append(h.flags, "--parts", parts)
		data := h.diskDir()
		b := h.bundle("debian", `uname -r >/mnt/kernel; cat /mnt/input; ip link add br0 type bridge && iptables=$(ls -d /sys/module/iptable_nat /sys/module/nf_tables) && echo "$iptables"; exit 7`, func(s *specs.Spec) {
			s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_NET_ADMIN")
			s.Process.Capabilities.Effective = append(s.Process.Capabilities.Effective, "CAP_NET_ADMIN")
			s.Process.Capabilities.Permitted = append(s.Process.Capabilities.Permitted, "CAP_NET_ADMIN")
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "bind", Source: data, Options: []string{"bind"}})
		})
		h.noErr(os.WriteFile(filepath.Join(data, "input"), []byte("from the host\n"), 0o644))
		r := h.cmd("run", "--bundle", b.dir, b.id)
		h.wantCode(r, 7)
		h.want("stdout", r.stdout, "from the host\n/sys/module/iptable_nat\n/sys/module/nf_tables\n")
		kernel, err := os.ReadFile(filepath.Join(data, "kernel"))
		h.noErr(err)
		h.wantPart("kernel", string(kernel), "-cloud-amd64")
	})
}
