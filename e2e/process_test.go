package e2e

import (
	"strconv"
	"strings"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestProcess(t *testing.T) {
	eachRuntime(t, func(e *env) {
		got := e.report("-e", "PLAIN=1", "-e", "SPACES=a  b 'c'", "-e", "EMPTY=", "-w", "/no/such/dir", "--hostname", "box",
			"--domainname", "example.org", "--add-host", "friend:192.0.2.1", "busybox", "sh", "-c", `
echo "env=$PLAIN|$SPACES|${EMPTY-unset}|$HOME|$PATH"
echo "cwd=$(pwd)"
echo "hostname=$(hostname)"
echo "domain=$(cat /proc/sys/kernel/domainname)"
echo "hosts=$(grep -c 'box$' /etc/hosts) $(grep -c friend /etc/hosts)"
echo "pid=$$"
echo "processes=$(ls -d /proc/[0-9]* | wc -l)"
echo "umask=$(umask)"
echo "ids=$(id)"
echo "args=$0 $1 $2"
`, "zero", "first arg", "")
		e.wantReport(got, map[string]string{
			"env":      "1|a  b 'c'||/root|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"cwd":      "/no/such/dir",
			"hostname": "box",
			"domain":   "example.org",
			"pid":      "1",
			"umask":    "0022",
			"ids":      "uid=0(root) gid=0(root) groups=0(root)",
			"args":     "zero first arg ",
		})
		e.wantPart("hosts", got["hosts"], " 1")
		// The shell, and the subshell with ls and wc: nothing of the host or of guestinit shows.
		if n, err := strconv.Atoi(got["processes"]); err != nil || n > 4 {
			e.Errorf("the container sees %s processes, want its own few", got["processes"])
		}
	})
}

func TestUser(t *testing.T) {
	eachRuntime(t, func(e *env) {
		const script = `echo "ids=$(id -u) $(id -g) $(id -G)"; echo "home=$HOME"; echo "caps=$(grep CapEff /proc/self/status | cut -f2)"`
		for user, want := range map[string]map[string]string{
			"user":    {"ids": "1000 1001 1001 1002", "home": "/home/user", "caps": "0000000000000000"},
			"1000":    {"ids": "1000 1001 1001 1002", "home": "/home/user", "caps": "0000000000000000"},
			"7:8":     {"ids": "7 8 8", "home": "/", "caps": "0000000000000000"},
			"0:staff": {"ids": "0 1001 1001", "home": "/root", "caps": "00000000a80425fb"},
		} {
			e.wantReport(e.report("--user", user, "busybox", "sh", "-c", script), want)
		}
		e.wantReport(e.report("--user", "7:8", "--group-add", "55", "--group-add", "extra", "--group-add", "55", "busybox", "sh", "-c", script),
			map[string]string{"ids": "7 8 8 55 1002"})

		r := e.run("--user", "nobody-knows", "busybox", "true")
		e.wantCode(r, 125)
		e.wantPart("stderr", r.stderr, "unable to find user nobody-knows")
	})
}

func TestInit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		// docker-init is PID 1, hands on signals and exit codes, and reaps orphans.
		got := e.report("--init", "busybox", "sh", "-c", `
echo "init=$(cat /proc/1/comm)"
sh -c 'sleep 0 & exec true'
for i in 1 2 3 4 5 6 7 8 9 10; do usleep 100000; n=$(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l); [ $n = 0 ] && break; done
echo "zombies=$n"`)
		e.wantReport(got, map[string]string{"init": "docker-init", "zombies": "0"})

		id := e.startReady("ready", "--init", "busybox", "probe", "signals")
		e.ok("stop", "-t", "60", id)
		e.want("exit code", e.inspect(id, ".State.ExitCode"), "5")
	})
}

// Orphans of a container without --init become children of its process, which does not know them, and nothing breaks.
func TestOrphansDieWithInit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		r := e.run("busybox", "sh", "-c", "(sleep 1000 >/dev/null 2>&1 &) ; (setsid sleep 1000 >/dev/null 2>&1 &) ; echo left; exit 9")
		e.wantCode(r, 9)
		e.want("stdout", r.stdout, "left\n")
	})
}

func TestOwnKernel(t *testing.T) {
	eachVM(t, func(e *env) {
		host := strings.TrimSpace(e.shOut("uname -r"))
		lean := e.runOK("busybox", "uname", "-r")
		net := e.runOK("--cap-add", "NET_ADMIN", "busybox", "uname", "-r")
		all := e.runOK("--cap-add", "ALL", "busybox", "uname", "-r")
		if lean == host || net == host {
			e.Errorf("uname -r = %q and %q, the host's is %q", lean, net, host)
		}
		for got, suffix := range map[string]string{lean: "-boxlite-lean", net: "-boxlite-net", all: "-boxlite-net"} {
			if !strings.HasSuffix(got, suffix) {
				e.Errorf("uname -r = %q, want it to end in %q", got, suffix)
			}
		}
	})
}

// allOfDocker is what dockerd 20.10 knows as ALL: the capabilities up to CAP_AUDIT_READ.
const allOfDocker = "0000003fffffffff"

// What runc could not allow, or not without giving the host away.
func TestPrivilegedInItsOwnKernel(t *testing.T) {
	eachVM(t, func(e *env) {
		got := e.report("--cap-add", "ALL", "busybox", "sh", "-c", `
echo "caps=$(grep CapEff /proc/self/status | cut -f2)"
mkdir /m && mount -t tmpfs none /m && echo "mount=ok"
echo 1 >/proc/sys/vm/drop_caches && echo "sysctl=ok"
mkdir /sys/fs/cgroup/mine && echo $$ >/sys/fs/cgroup/mine/cgroup.procs && echo "cgroup=$(cat /proc/self/cgroup)"
ip link add br0 type bridge && echo "bridge=ok"
hostname renamed && echo "hostname=$(hostname)"`)
		e.wantReport(got, map[string]string{
			"caps": allOfDocker, "mount": "ok", "sysctl": "ok", "bridge": "ok", "hostname": "renamed",
		})
		e.wantPart("cgroup", got["cgroup"], "/mine")

		got = e.report("--privileged", "busybox", "sh", "-c", `
echo "caps=$(grep CapEff /proc/self/status | cut -f2)"
mkdir /m && mount -t tmpfs none /m && echo "mount=ok"
mknod /dev/mine c 1 3 && echo "mknod=ok"`)
		e.wantReport(got, map[string]string{"caps": allOfDocker, "mount": "ok", "mknod": "ok"})
	})
}
