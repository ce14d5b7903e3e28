package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/kernels"
)

// kernelOfAll is the kernel of a container with every capability: full, if it has been built.
func (e *env) kernelOfAll() string {
	if _, err := os.Stat(filepath.Join(filepath.Dir(e.rt.bin), "vmlinux-full")); err == nil {
		return "full"
	}
	return "net"
}

// tools runs a script in a container of ../images/tools that may do everything, and returns what it reports.
func (e *env) tools(script string, flags ...string) map[string]string {
	e.Helper()
	e.patient()
	args := append([]string{"--cap-add", "ALL", "--tmpfs", "/disks"}, flags...)
	r := e.run(append(args, e.wholeImage("tools", ""), "bash", "-euo", "pipefail", "-c", script)...)
	e.wantCode(r, 0)
	e.Logf("the tools say:\n%s", r.stderr)
	return parseReport(r.stdout)
}

// What a container traces is its own kernel: events, kernel and user functions, and types.
func TestFullTracing(t *testing.T) {
	eachVM(t, func(e *env) {
		got := e.tools(`
uname -r | sed 's/.*-/kernel=/'
cd /sys/kernel/tracing
echo "tracers=$(tr ' ' '\n' <available_tracers | grep ^function | sort | xargs)"
echo "btf=$(head -c 2 /sys/kernel/btf/vmlinux | od -An -tx1 | xargs)"

# By the kernel's own files.
echo do_sys_openat2 >set_ftrace_filter; echo function >current_tracer
cat /etc/hostname >/dev/null
echo 0 >tracing_on
grep -q 'cat-.*do_sys_openat2' trace && echo "function=ok"
echo nop >current_tracer; echo 1 >tracing_on
echo 'p:opens do_sys_openat2 name=+0($arg2):ustring' >kprobe_events
echo 1 >events/kprobes/opens/enable
cat /etc/hostname >/dev/null
echo 0 >events/kprobes/opens/enable
grep -q 'opens:.*name="/etc/hostname"' trace && echo "kprobe=ok"
: >kprobe_events

# By programs. They see the kernel's own pids, not those of the container.
cd /
ask() { bpftrace -e "$2" -c "/bin/cat /etc/passwd" >/tmp/trace 2>&1; grep "^$1=" /tmp/trace | tail -n 1 | grep . || cat /tmp/trace >&2; }
ask bpf-event 'tracepoint:syscalls:sys_enter_openat /comm == "cat"/ { printf("bpf-event=%s\n", str(args->filename)); }'
ask bpf-kprobe 'kprobe:vfs_read /comm == "cat"/ { printf("bpf-kprobe=%s\n", comm); }'
ask bpf-uprobe 'uprobe:/lib/x86_64-linux-gnu/libc.so.6:setlocale /comm == "cat"/ { printf("bpf-uprobe=%s\n", comm); }'
ask bpf-types 'kfunc:vfs_open /comm == "cat" && str(args->path->dentry->d_name.name) == "passwd"/ { printf("bpf-types=%s\n", str(args->path->dentry->d_name.name)); }'
perf trace -e openat cat /etc/passwd >/dev/null 2>/tmp/trace; grep -q 'openat(.* = [0-9]' /tmp/trace && echo "perf-trace=ok"
perf stat -e sched:sched_process_exec true 2>&1 | awk '/sched_process_exec/ { print "perf-stat=" $1 }'`)
		e.wantReport(got, map[string]string{
			"kernel": "full", "tracers": "function function_graph", "btf": "9f eb", "function": "ok", "kprobe": "ok",
			"bpf-event": "/etc/passwd", "bpf-kprobe": "cat", "bpf-uprobe": "cat", "bpf-types": "passwd", "perf-trace": "ok", "perf-stat": "1",
		})
	})
}

// A container without those capabilities is shown nothing of it.
func TestFullTakesCapabilities(t *testing.T) {
	eachVM(t, func(e *env) {
		const look = `uname -r | sed 's/.*-/kernel=/'
echo "tracing=$(ls /sys/kernel/tracing 2>/dev/null | grep -cx kprobe_events)"
echo "debug=$(ls /sys/kernel/debug 2>/dev/null | grep -cx tracing)"
echo "ppp=$([ -c /dev/ppp ] && (: <>/dev/ppp) 2>/dev/null && echo 1 || echo 0)"`
		for _, c := range []struct {
			flags                       []string
			kernel, tracing, debug, ppp string
		}{
			{nil, "lean", "0", "0", "0"},
			{[]string{"--cap-add", "NET_ADMIN"}, "net", "0", "0", "0"},
			{[]string{"--cap-add", "SYS_ADMIN"}, "full", "1", "1", "0"}, // the node opens for CAP_NET_ADMIN
			{[]string{"--cap-add", "ALL"}, "full", "1", "1", "1"},
			// As bpftrace's own image is started.
			{[]string{"--cap-add", "SYS_ADMIN", "-v", "/sys/kernel/debug:/sys/kernel/debug:rw"}, "full", "1", "1", "0"},
		} {
			got := e.report(append(c.flags, "busybox", "sh", "-c", look)...)
			e.wantReport(got, map[string]string{"kernel": c.kernel, "tracing": c.tracing, "debug": c.debug, "ppp": c.ppp})
			if e.Failed() {
				e.Fatalf("with %s", strings.Join(c.flags, " "))
			}
		}
	})
}

// A container gets full for a kernel parameter or a device that only full has.
func TestFullByNeed(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		parametersOf := func(kernel string) string {
			b := h.bundle("parameters-"+kernel, "cd /proc/sys && find net -type f -perm -200", nil)
			return h.must("--kernel", kernel, "run", "--bundle", b.dir, b.id)
		}
		net := parametersOf("net")
		for name := range strings.Lines(parametersOf("full")) {
			if name = strings.TrimSpace(name); strings.Contains(net, name+"\n") {
				continue
			}
			if kernel, reason, err := kernels.Select(kernels.Needs{Sysctls: map[string]string{name: ""}, Full: true}, "", ""); kernel != kernels.Full {
				h.Errorf("with the parameter %s the kernel is %s (%s, %v)", name, kernel, reason, err)
			}
		}
		b := h.bundle("full-parameter", "uname -r; cat /proc/sys/net/mpls/platform_labels", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net.mpls.platform_labels": "1000"}
		})
		_, report, _ := strings.Cut(h.must("run", "--bundle", b.dir, b.id), "-boxlite-")
		h.want("kernel and parameter", report, "full\n1000\n")
		b = h.bundle("full-device", "uname -r; : <>/dev/ppp && echo open", func(s *specs.Spec) {
			s.Process.Capabilities.Effective = append(s.Process.Capabilities.Effective, "CAP_NET_ADMIN")
			s.Process.Capabilities.Permitted = append(s.Process.Capabilities.Permitted, "CAP_NET_ADMIN")
			s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_NET_ADMIN")
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/ppp", Type: "c", Major: 108})
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
		})
		_, report, _ = strings.Cut(h.must("run", "--bundle", b.dir, b.id), "-boxlite-")
		h.want("kernel and device", report, "full\nopen\n")
		b = h.bundle("full-capability", "uname -r; ls /sys/kernel/tracing | grep -x kprobe_events", func(s *specs.Spec) { // Docker 20.10 does not know it
			s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_PERFMON")
		})
		_, report, _ = strings.Cut(h.must("run", "--bundle", b.dir, b.id), "-boxlite-")
		h.want("kernel and files", report, "full\nkprobe_events\n")
		b = h.bundle("full-bind", "true", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/debug", Type: "bind", Source: "/sys/kernel/debug", Options: []string{"rbind"}})
		})
		h.wantFail("mount /debug: the VM has the kernel lean, and only full has /sys/kernel/debug", "create", "--bundle", b.dir, b.id)
	})
}

// Disks of other file systems, images of files, quotas, and compressed memory as a disk.
func TestFullFileSystems(t *testing.T) {
	eachVM(t, func(e *env) {
		got := e.tools(`
cd /disks
disk() { truncate -s "$2" "$1.img"; mkdir "$1"; }
disk xfs 400M; mkfs.xfs -q xfs.img; mount -o loop,prjquota xfs.img xfs
seq 10000 >xfs/f; sync xfs/f; cp --reflink=always xfs/f xfs/g; umount xfs; mount -o loop xfs.img xfs
echo "xfs=$(sha256sum <xfs/g | cut -c1-8)"
disk btrfs 200M; mkfs.btrfs -q btrfs.img; mount -o loop,compress=zstd btrfs.img btrfs
btrfs -q subvolume create btrfs/a; seq 10000 >btrfs/a/f; btrfs -q subvolume snapshot -r btrfs/a btrfs/b; echo changed >btrfs/a/f
echo "btrfs=$(sha256sum <btrfs/b/f | cut -c1-8)"
mkdir tree erofs; seq 10000 >tree/f; mkfs.erofs -zlz4hc erofs.img tree >/dev/null 2>&1; mount -o loop erofs.img erofs
echo "erofs=$(sha256sum <erofs/f | cut -c1-8)"
disk ext4 64M; mkfs.ext4 -q -O quota ext4.img; mount -o loop,usrquota ext4.img ext4; chmod 1777 ext4
setquota -u 1000 0 1024 0 0 ext4
echo "quota=$(setpriv --reuid 1000 --clear-groups sh -c 'head -c 2M /dev/zero >ext4/mine' 2>&1 | grep -o 'Disk quota exceeded')"
z=$(cat /sys/class/zram-control/hot_add); mknod /dev/zram$z b $(tr : ' ' </sys/block/zram$z/dev) 2>/dev/null || :
echo 64M >/sys/block/zram$z/disksize; mkfs.ext4 -q /dev/zram$z; mkdir zram; mount /dev/zram$z zram; seq 10000 >zram/f; sync
echo "zram=$(sha256sum <zram/f | cut -c1-8)"`)
		sum := strings.Fields(e.shOut("seq 10000 | sha256sum | cut -c1-8"))[0]
		e.wantReport(got, map[string]string{"xfs": sum, "btrfs": sum, "erofs": sum, "zram": sum, "quota": "Disk quota exceeded"})
	})
}

// Files of another machine: here it is the container itself.
func TestFullNetworkFileSystems(t *testing.T) {
	eachVM(t, func(e *env) {
		got := e.tools(`
mkdir -p /disks/served /nfs /cifs /9p; cd /disks; seq 10000 >served/f
mount -t nfsd nfsd /proc/fs/nfsd
echo '/disks/served 127.0.0.1(rw,no_root_squash,insecure,fsid=0)' >/etc/exports
mkdir -p /var/lib/nfs/v4recovery /run/sendsigs.omit.d; touch /var/lib/nfs/etab /var/lib/nfs/rmtab
exportfs -r 2>/dev/null; rpc.mountd -N 3 2>/dev/null; rpc.nfsd -N 3 -G 10 -L 10 2
mount -t nfs4 127.0.0.1:/ /nfs; echo by-nfs >/nfs/new
echo "nfs=$(sha256sum </nfs/f | cut -c1-8) $(cat served/new)"
umount /nfs; rpc.nfsd 0
cat >/etc/samba/smb.conf <<END
[global]
  map to guest = Bad User
  guest account = root
  disable spoolss = yes
[served]
  path = /disks/served
  guest ok = yes
  read only = no
END
mkdir -p /run/samba /var/log/samba; smbd -D
for i in $(seq 100); do mount -t cifs //127.0.0.1/served /cifs -o guest,vers=3.1.1 2>/tmp/cifs && break; sleep 0.3; done
grep -q ' /cifs cifs ' /proc/mounts || cat /tmp/cifs >&2
echo by-cifs >/cifs/new
echo "cifs=$(sha256sum </cifs/f | cut -c1-8) $(cat served/new)"
umount /cifs
diod -n -e /disks/served -l 127.0.0.1:5640 # it goes to the background when it listens
mount -t 9p -o trans=tcp,port=5640,version=9p2000.L,aname=/disks/served,uname=root,access=any 127.0.0.1 /9p
echo by-9p >/9p/new
echo "9p=$(sha256sum </9p/f | cut -c1-8) $(cat served/new)"`)
		sum := strings.Fields(e.shOut("seq 10000 | sha256sum | cut -c1-8"))[0]
		e.wantReport(got, map[string]string{"nfs": sum + " by-nfs", "cifs": sum + " by-cifs", "9p": sum + " by-9p"})
	})
}

// Links and switches between namespaces of the container's own.
func TestFullNetworks(t *testing.T) {
	eachVM(t, func(e *env) {
		got := e.tools(`
at() { ip netns exec "$@"; }
mkdir -p /run/netns
for n in a b; do ip netns add $n; at $n ip link set lo up; done
ip link add va netns a type veth peer name vb netns b
at a ip addr add 10.1.0.1/24 dev va; at b ip addr add 10.1.0.2/24 dev vb; at a ip link set va up; at b ip link set vb up
reach() { at a ping -c 1 -W 10 "$2" >/dev/null && echo "$1=ok"; }
reach plain 10.1.0.2

ka=00112233445566778899aabbccddeeff
mac() { at $1 cat /sys/class/net/v$1/address; }
ma=$(ip -n a -o link show va | sed 's/.*ether //; s/ .*//'); mb=$(ip -n b -o link show vb | sed 's/.*ether //; s/ .*//')
secure() {
	ip -n $1 link add link v$1 macsec0 type macsec encrypt on
	ip -n $1 macsec add macsec0 tx sa 0 pn 1 on key 00 $ka
	ip -n $1 macsec add macsec0 rx port 1 address $2
	ip -n $1 macsec add macsec0 rx port 1 address $2 sa 0 pn 1 on key 00 $ka
	ip -n $1 link set macsec0 up; ip -n $1 addr add 10.2.0.$3/24 dev macsec0
}
secure a $mb 1; secure b $ma 2
reach macsec 10.2.0.2

tunnel() {
	ip -n $1 l2tp add tunnel tunnel_id 1 peer_tunnel_id 1 encap udp local 10.1.0.$2 remote 10.1.0.$3 udp_sport 5000 udp_dport 5000
	ip -n $1 l2tp add session tunnel_id 1 session_id 1 peer_session_id 1
	ip -n $1 link set l2tpeth0 up; ip -n $1 addr add 10.3.0.$2/24 dev l2tpeth0
}
tunnel a 1 2; tunnel b 2 1
reach l2tp 10.3.0.2

at a tc qdisc add dev va root red limit 400000 min 30000 max 90000 avpkt 1000 burst 55 bandwidth 10Mbit
echo "red=$(at a tc qdisc show dev va | grep -c 'qdisc red')"

# It goes to the background when the link is up.
pppd updetach noauth local nolock noipdefault 10.4.0.1:10.4.0.2 pty 'ip netns exec b pppd nodetach noauth local nolock notty' >&2
ping -c 1 -W 10 10.4.0.2 >/dev/null && echo ppp=ok

mkdir -p /run/openvswitch; ovsdb-tool create /tmp/db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server /tmp/db --remote=punix:/run/openvswitch/db.sock --pidfile --detach --log-file=/dev/null 2>/dev/null
ovs-vsctl --no-wait init; ovs-vswitchd --pidfile --detach --log-file=/dev/null 2>/dev/null
ovs-vsctl add-br br0
for n in a b; do
	ip link add port$n type veth peer name ovs netns $n; ip link set port$n up
	ovs-vsctl add-port br0 port$n
done
at a ip addr add 10.5.0.1/24 dev ovs; at b ip addr add 10.5.0.2/24 dev ovs; at a ip link set ovs up; at b ip link set ovs up
reach openvswitch 10.5.0.2
echo "datapath=$(ovs-dpctl show | sed -n 's/^\(system@[a-z-]*\).*/\1/p')"`)
		e.wantReport(got, map[string]string{
			"plain": "ok", "macsec": "ok", "l2tp": "ok", "red": "1", "ppp": "ok", "openvswitch": "ok", "datapath": "system@ovs-system",
		})
	})
}
