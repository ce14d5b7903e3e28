package e2e

import (
	"path/filepath"
	"testing"
)

// An ordinary user's Podman, whose container has a network with a bridge and a firewall, and bubblewrap. Both make user
// namespaces, which Docker's filter forbids, and mount a proc, which no kernel allows below one that is masked in part.
func TestContainersOfAnOrdinaryUser(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.patient()
		port := e.echoServer(e.d.gateway)
		id := e.start("--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined",
			"-v", filepath.Join(workDir, "rootfs")+":/busybox:ro", e.wholeImage("machine", ""), "sleep", "infinity")
		e.inside(id, `
mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200
useradd -m user && rm /etc/subuid /etc/subgid`)
		asUser := func(script string) map[string]string {
			e.Helper()
			r := e.docker("exec", "--user", "user", "-e", "HOME=/home/user", "-w", "/home/user", id, "bash", "-ec", script)
			e.wantCode(r, 0)
			return parseReport(r.stdout)
		}
		got := asUser(`bwrap --unshare-all --ro-bind / / --dev /dev --proc /proc bash -ec 'echo "pid=$$"; set -- $(ip -br -4 addr); echo "network=$*"'`)
		e.wantReport(got, map[string]string{"pid": "2", "network": "lo UNKNOWN 127.0.0.1/8"})

		got = asUser(`
tar -C /busybox -c . | podman --storage-driver vfs import -q - busybox >/dev/null
podman network create own >/dev/null
podman --storage-driver vfs run --rm --network own --cgroups disabled busybox sh -c '
echo "address=$(ip -4 -o addr show eth0 | sed "s/.*inet //; s/ .*//")"
echo "tcp=$(probe dial tcp ` + e.d.gateway + ":" + port + ` hello)"'`)
		e.wantReport(got, map[string]string{"address": "10.89.0.2/24", "tcp": "hello"})
	})
}

// What a user namespace inside may use of the kernel, without a capability of config.json.
func TestUserNamespacesKernel(t *testing.T) {
	eachVM(t, func(e *env) {
		got := e.report("--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined",
			"--device", "/dev/net/tun", "busybox", "unshare", "-U", "-r", "-n", "sh", "-c", `
uname -r | sed 's/.*-/kernel=/'
ip link set lo up
ip link add v0 type veth && ip link add br0 type bridge && ip link set v0 master br0 && echo bridge=ok
ip link add d0 type dummy && echo dummy=ok
tunctl -t t0 >/dev/null && ip link set t0 up && echo tun=ok
ip rule add from 192.0.2.1 table 7 && ip rule list | grep -q 'lookup 7' && echo rule=ok
echo bbr >/proc/sys/net/ipv4/tcp_congestion_control && echo "congestion=$(cat /proc/sys/net/ipv4/tcp_congestion_control)"
echo "mptcp=$(probe loopback mptcp hello)"
echo "vsock=$(probe loopback vsock hello)"`)
		e.wantReport(got, map[string]string{
			"kernel": "lean", "bridge": "ok", "dummy": "ok", "tun": "ok", "rule": "ok", "congestion": "bbr", "mptcp": "262 hello", "vsock": "0 hello",
		})
	})
}
