package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
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
		for got, suffix := range map[string]string{lean: "-boxlite-lean", net: "-boxlite-net", all: "-boxlite-" + e.kernelOfAll()} {
			if !strings.HasSuffix(got, suffix) {
				e.Errorf("uname -r = %q, want it to end in %q", got, suffix)
			}
		}
	})
}

// allOfDocker is what dockerd takes ALL for: the capabilities up to CAP_AUDIT_READ, which Docker 20.10 knows, and those that
// dockerd has itself from Docker 26 on.
func (e *env) allOfDocker() string {
	if e.d.major() >= 26 {
		return capBits(e.ownCapabilities())
	}
	return "0000003fffffffff"
}

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
			"caps": e.allOfDocker(), "mount": "ok", "sysctl": "ok", "bridge": "ok", "hostname": "renamed",
		})
		e.wantPart("cgroup", got["cgroup"], "/mine")

		got = e.report("--privileged", "busybox", "sh", "-c", `
echo "caps=$(grep CapEff /proc/self/status | cut -f2)"
mkdir /m && mount -t tmpfs none /m && echo "mount=ok"
mknod /dev/mine c 1 3 && echo "mknod=ok"`)
		e.wantReport(got, map[string]string{"caps": e.allOfDocker(), "mount": "ok", "mknod": "ok"})
	})
}

// How long a command line may be is for the kernel to say that executes it: the container starts, and what the kernel
// refuses is the container's own error.
func TestLongCommandLines(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		const script = `echo $# $(echo "$*" | wc -c) $(echo "$LONG" | wc -c)`
		most := strings.Repeat("x", 128<<10-1)
		many := append([]string{"sh", "-c", script, "sh"}, slices.Repeat([]string{most}, 10)...)
		const want = "10 1310720 131067\n"
		b := h.bundle("long", "", func(s *specs.Spec) {
			s.Process.Args = many
			s.Process.Env = append(s.Process.Env, "LONG="+most[5:])
		})
		h.want("output", h.must("run", "--bundle", b.dir, b.id), want)

		spec := defaultSpec(b.id, "sleep", "1000")
		h.writeSpec(b, spec)
		c := h.create(b)
		c.start()
		exec := func(detach bool, args ...string) (result, string) {
			process := *spec.Process
			process.Args, process.Env = args, append(process.Env, "LONG="+most[5:])
			text, err := json.Marshal(process)
			h.noErr(err)
			file := filepath.Join(b.dir, "process.json")
			h.noErr(os.WriteFile(file, text, 0o644))
			if !detach {
				r := h.cmd("exec", "--process", file, b.id)
				return r, r.stdout
			}
			pid := filepath.Join(b.dir, "exec-pid")
			out := h.collect()
			x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--process", file, "--detach", "--pid-file", pid, b.id), Env: h.vars, Dir: "/"}, [3]*os.File{nil, out.w, out.w})
			h.noErr(out.w.Close())
			h.want("detached", x.wait(0).String(), "exit code 0")
			x.wait(h.readPid(pid))
			return result{}, out.wait()
		}
		for _, detach := range []bool{false, true} {
			r, out := exec(detach, many...)
			h.wantCode(r, 0)
			h.want("output of an exec", out, want)
		}
		r, _ := exec(false, "true", most+"x")
		h.wantPart("stderr of an exec", r.stderr, "argument list too long")
		if r.code == 0 {
			h.Errorf("%s, want a failure", r)
		}
		h.must("kill", b.id, "KILL")
		c.end()
		h.must("delete", b.id)

		h.writeSpec(b, defaultSpec(b.id, "true", most+"x"))
		c = h.create(b)
		c.start()
		if end := c.end(); end.Code == 0 {
			h.Errorf("%v, want a failure", end)
		}
		h.wantPart("stderr of the container", c.errs.wait(), "argument list too long")
	})
}
