package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/kernels"
)

// What is the container's own with CAP_SYS_ADMIN, tried by the container init and by an exec process.
const shapeScript = `
echo "masked=$(grep -c -e ' /proc/keys ' -e ' /sys/firmware ' /proc/self/mounts)"
echo "read-only=$(grep -e ' /proc' -e ' /sys' /proc/self/mounts | grep -c ' ro,')"
echo 17 >/proc/sys/vm/swappiness && echo "proc-sys=$(cat /proc/sys/vm/swappiness)"
[ -w /proc/sysrq-trigger ] && echo h >/proc/sysrq-trigger && echo "sysrq=ok"
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled && echo "sys=ok"
mkdir /sys/fs/cgroup/by-$1 && echo "cgroup=ok" && rmdir /sys/fs/cgroup/by-$1
`

// A manager of containers, such as the kubelet, in the container: it clears the root cgroup, hands controllers down level by
// level, limits, freezes and kills.
const managerScript = `
cd /sys/fs/cgroup
mkdir init && for pid in $(cat cgroup.procs); do echo $pid >init/cgroup.procs; done
for c in $(cat cgroup.controllers); do echo +$c >cgroup.subtree_control || echo "failed=$c"; done
echo "controllers=$(cat cgroup.subtree_control)"
mkdir -p pods/one/app && for dir in pods pods/one; do echo '+cpu +memory +pids +io +cpuset' >$dir/cgroup.subtree_control; done
cd pods/one/app
echo 33554432 >memory.max && echo '20000 100000' >cpu.max && echo 0 >cpuset.cpus && echo 5 >pids.max && echo "limits=$(cat memory.max cpu.max cpuset.cpus.effective pids.max | xargs)"
sleep 1000 & echo $! >cgroup.procs
echo "moved=$(cat /proc/$!/cgroup)"
echo 1 >cgroup.freeze; until grep -q 'frozen 1' cgroup.events; do :; done; echo "frozen=$(grep -c . cgroup.procs)"
echo 0 >cgroup.freeze; echo 1 >cgroup.kill; wait $!; echo "killed=$?"
sh -c 'echo 0 >cgroup.procs; exec tail /dev/zero' 2>/dev/null; echo "oom=$?"
sh -c 'echo 0 >cgroup.procs; for i in 1 2 3 4 5 6 7 8; do sleep 1 & done' 2>&1 | grep -q -i -e "can't fork" -e unavailable && echo "pids=held"
cd /sys/fs/cgroup; until rmdir pods/one/app; do :; done 2>/dev/null; rmdir pods/one pods && echo "removed=ok"
`

func TestPrivilegedShape(t *testing.T) {
	eachVM(t, func(e *env) {
		id := e.start("--privileged", "busybox", "sleep", "1000")
		want := map[string]string{"masked": "0", "read-only": "0", "proc-sys": "17", "sysrq": "ok", "sys": "ok", "cgroup": "ok"}
		e.wantReport(parseReport(e.exec(id, "sh", "-c", shapeScript, "sh", "exec")), want)

		// Every device node stands for a device that this kernel has. Loop devices appear when one is asked for.
		got := parseReport(e.exec(id, "sh", "-c", `
for node in $(find /dev -type b -o -type c); do
	case $node in /dev/pts/* | /dev/console | /dev/loop[0-9]*) continue ;; esac
	number=$(stat -c '%t %T' $node | { read major minor; echo $((0x$major)):$((0x$minor)); })
	[ -e /sys/dev/char/$number -o -e /sys/dev/block/$number ] || echo "invented=$node $number"
done
for node in null zero full random urandom tty kmsg fuse net/tun loop-control mapper/control; do [ -c /dev/$node ] || echo "missing=$node"; done
truncate -s 1M /disk && losetup $(losetup -f) /disk && echo "loop=$(losetup -a | cut -d : -f 1)"`))
		e.wantReport(got, map[string]string{"loop": "/dev/loop0"})
		for _, wrong := range []string{"invented", "missing"} {
			if got[wrong] != "" {
				e.Errorf("%s device node: %s", wrong, got[wrong])
			}
		}
		e.ok("rm", "-f", id)

		// By its capabilities alone, without the flag: the same. Init and exec are in one cgroup namespace.
		id = e.startReady("removed=", "--cap-add", "ALL", "busybox", "sh", "-c", shapeScript+managerScript+"sleep 1000", "sh", "init")
		got = parseReport(e.ok("logs", id))
		e.wantReport(got, want)
		e.wantReport(got, map[string]string{
			"controllers": "cpuset cpu io memory hugetlb pids rdma misc", "limits": "33554432 20000 100000 0 5",
			"moved": "0::/pods/one/app", "frozen": "1", "killed": "137", "oom": "137", "pids": "held", "removed": "ok",
		})
		if got["failed"] != "" {
			e.Errorf("controller %s cannot be handed down", got["failed"])
		}
		e.wantReport(parseReport(e.exec(id, "sh", "-c", shapeScript, "sh", "exec")), want)
		e.want("cgroup of exec", e.exec(id, "cat", "/proc/self/cgroup"), "0::/init")
	})
}

// Root of a container with every capability does its worst; the machine is the same after it.
func TestHostUntouched(t *testing.T) {
	eachVM(t, func(e *env) {
		before := e.machine()
		id := e.startReady("done=", "--privileged", "busybox", "sh", "-c", `
sysctl -w kernel.hostname=owned kernel.panic=5 vm.swappiness=3 net.ipv4.ip_forward=0 fs.file-max=1000 kernel.pid_max=4000 >/dev/null
mount -t tmpfs none /mnt; mount -o remount,rw /; mount --make-rshared /; mount --bind /etc /mnt
iptables -P FORWARD DROP 2>/dev/null; ip link set lo down; ip link add owned type bridge
for dir in / /sys/fs/cgroup; do mkdir $dir/owned; done
hwclock -w 2>/dev/null; date -s 2001-01-01 >/dev/null
insmod /nothing.ko 2>/dev/null; echo owned >/proc/sys/kernel/core_pattern; echo /bin/false >/proc/sys/kernel/modprobe
echo 1 >/proc/sys/kernel/sysrq; echo 1 >/proc/sys/vm/drop_caches
echo "done=$(hostname) $(cat /proc/sys/vm/swappiness /sys/fs/cgroup/owned/cgroup.freeze | xargs)"
sleep 1000`)
		e.wantReport(parseReport(e.ok("logs", id)), map[string]string{"done": "owned 3 0"})
		// Its reboot is the VM's, and the end of the container.
		e.docker("exec", id, "sh", "-c", "echo b >/proc/sysrq-trigger")
		e.want("status", e.ok("wait", id), "255")
		after := e.machine()
		for what, text := range before {
			e.want(what+" after", after[what], text)
		}
	})
}

// machine is what root could change of a host, as text.
func (e *env) machine() map[string]string {
	e.Helper()
	state := map[string]string{}
	for what, script := range map[string]string{
		"sysctl": `cd /proc/sys && grep . kernel/panic kernel/core_pattern kernel/modprobe kernel/sysrq kernel/pid_max kernel/hostname \
			vm/swappiness fs/file-max net/ipv4/ip_forward 2>/dev/null || true`,
		"mounts":   "cut -d ' ' -f 3- /proc/self/mountinfo",
		"modules":  "cat /proc/modules 2>/dev/null || true",
		"iptables": "iptables-save | grep -v '^#' | sed 's/\\[.*\\]//'",
		"links":    "ip -o link | cut -d : -f 2",
		"hostname": "hostname",
		"year":     "date +%Y",
		"cgroups":  "find /sys/fs/cgroup -type d | grep owned || true",
	} {
		state[what] = e.shOut(script)
	}
	return state
}

// Which kernel boots and why is in the state and in the debug log; a wrong name is an error that lists the right ones.
// A container gets the kernel that has the kernel parameters that its config.json sets.
func TestKernelOfItsNeeds(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		parametersOf := func(kernel string) map[string]string {
			b := h.bundle("parameters-"+kernel, "cd /proc/sys && find net -type f -perm -200 -exec grep -H '' {} + 2>/dev/null | sed 's/:/=/'", nil)
			return parseReport(h.must("--kernel", kernel, "run", "--bundle", b.dir, b.id))
		}
		lean, net := parametersOf("lean"), parametersOf("net")
		if len(lean) < 100 || len(net) <= len(lean) {
			h.Fatalf("%d parameters of lean, %d of net", len(lean), len(net))
		}
		for name, value := range net {
			of, ofLean := lean[name]
			if ofLean {
				value = of
			}
			kernel, reason, err := kernels.Select(kernels.Needs{Sysctls: map[string]string{name: value}}, "", "")
			if err != nil || (kernel == kernels.Lean) != ofLean {
				h.Errorf("with the parameter %s the kernel is %s (%s, %v); lean has it: %v", name, kernel, reason, err, ofLean)
			}
		}

		for kernel, parameter := range map[string]string{"lean": "net/netfilter/nf_conntrack_max", "net": "net/bridge/bridge-nf-call-iptables"} {
			b := h.bundle("needs-"+kernel, "uname -r; cat /proc/sys/net/ipv4/tcp_congestion_control /proc/sys/"+parameter+"; : 3<>/dev/net/tun && echo open", func(s *specs.Spec) {
				s.Linux.Sysctl = map[string]string{"net.ipv4.tcp_congestion_control": "bbr", parameter: "0"}
				s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200})
				s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
			})
			_, report, _ := strings.Cut(h.must("run", "--bundle", b.dir, b.id), "-boxlite-")
			h.want("kernel, bbr, parameter, tun", report, kernel+"\nbbr\n0\nopen\n")
		}
	})
}

func TestKernelChoice(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		netAdmin := func(s *specs.Spec) {
			s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_NET_ADMIN")
		}
		b := h.bundle("kernel", "sleep 1000", netAdmin)
		log := filepath.Join(b.dir, "log")
		c := h.create(b)
		var state struct{ Kernel, KernelReason string }
		h.noErr(json.Unmarshal([]byte(h.must("state", b.id)), &state))
		h.want("kernel", state.Kernel, "net")
		h.want("reason", state.KernelReason, "CAP_NET_ADMIN is among the capabilities")
		h.must("delete", "--force", b.id)
		c.end()

		b2 := h.bundle("kernel-annotated", "uname -r", func(s *specs.Spec) {
			netAdmin(s)
			s.Annotations = map[string]string{"boxlite.kernel": "lean"}
		})
		r := h.cmd("--debug", "--log", log, "run", "--bundle", b2.dir, b2.id)
		h.wantCode(r, 0)
		h.wantPart("kernel", r.stdout, "-boxlite-lean")
		text, err := os.ReadFile(log)
		h.noErr(err)
		if !strings.Contains(string(text), `kernel="lean"`) || !strings.Contains(string(text), "annotation boxlite.kernel") {
			h.Errorf("the debug log does not say which kernel and why: %s", clip(string(text)))
		}
		h.wantFail(`flag --kernel: unknown kernel .*fat.*, valid are .*lean.*net.* and .*full`, "--kernel", "fat", "create", "--bundle", b.dir, b.id)
		b3 := h.bundle("kernel-wrong", "true", func(s *specs.Spec) { s.Annotations = map[string]string{"boxlite.kernel": "host"} })
		h.wantFail(`annotation boxlite.kernel: unknown kernel .*host.*, valid are .*lean.*net.* and .*full`, "create", "--bundle", b3.dir, b3.id)
	})
}
