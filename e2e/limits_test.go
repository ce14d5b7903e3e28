package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestMemoryLimit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		within := e.run("--memory", "128m", "busybox", "probe", "hog", "64")
		e.wantCode(within, 0)
		e.wantPart("stdout", within.stdout, "touched 64\n")
		beyond := e.run("--memory", "128m", "--memory-swap", "128m", "busybox", "probe", "hog", "1024")
		e.wantCode(beyond, 137)
		if !strings.Contains(beyond.stdout, "touched 64\n") || strings.Contains(beyond.stdout, "touched 144\n") {
			e.Errorf("killed after %q, want after 64 and before 144 MiB", beyond.stdout)
		}

		// A process beside init is killed alone; the container goes on.
		got := e.report("--memory", "128m", "busybox", "sh", "-c", `probe hog 1024 >/dev/null; echo "child=$?"; echo "after=ok"`)
		e.wantReport(got, map[string]string{"child": "137", "after": "ok"})
	})
}

// Callers learn from the host's cgroup that a container ran out of memory.
func TestOOMKilled(t *testing.T) {
	eachRuntime(t, func(e *env) {
		for _, c := range []struct{ script, code, oom string }{
			{"exec probe hog 300", "137", "true"},
			{"probe hog 300; exit 5", "5", "true"},
			{"kill -9 $$; exit 6", "6", "false"},
		} {
			id := e.start("--memory", "64m", "--memory-swap", "64m", "busybox", "sh", "-c", c.script)
			e.want("exit code of "+c.script, e.ok("wait", id), c.code)
			e.want("OOMKilled of "+c.script, e.inspect(id, ".State.OOMKilled"), c.oom)
		}
	})
}

// What a program reserves is not refused, however little memory the container may use. What it touches beyond its limit,
// or beyond its VM, it is killed for.
func TestMemoryIsOvercommitted(t *testing.T) {
	limited := []string{"--memory", "64m", "--memory-swap", "64m"}
	wantOOM := func(e *env, args ...string) {
		e.Helper()
		id := e.start(args...)
		e.want("exit code", e.ok("wait", id), "137")
		e.want("OOMKilled", e.inspect(id, ".State.OOMKilled"), "true")
		e.wantPart("output", e.ok("logs", id), "reserved ")
	}
	eachRuntime(t, func(e *env) {
		e.want("with a limit", e.runOK(append(limited, "busybox", "probe", "reserve", "200", "16")...), "reserved 200\ntouched 16")
		e.want("without one", e.runOK("busybox", "probe", "reserve", "3000", "16"), "reserved 3000\ntouched 16")
		wantOOM(e, append(limited, "busybox", "probe", "reserve", "200", "200")...)
	})
	eachVM(t, func(e *env) { wantOOM(e, "busybox", "probe", "reserve", "3000", "3000") })
}

// Without a limit a container has the host's memory under runc and the VM's default size otherwise; this much it has.
func TestMemoryWithoutLimit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantPart("stdout", e.runOK("busybox", "probe", "hog", "768"), "touched 768")
	})
}

func TestCPULimit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		// Two loops want two CPUs; the quota leaves half of one.
		r := e.run("--cpus", "0.5", "busybox", "time", "-p", "timeout", "4", "sh", "-c", "(while :; do :; done) & P=$!; trap 'kill $P; exit 0' TERM; while :; do :; done")
		times := map[string]float64{}
		for line := range strings.Lines(r.stderr) {
			if f := strings.Fields(line); len(f) == 2 {
				times[f[0]], _ = strconv.ParseFloat(f[1], 64)
			}
		}
		if times["real"] < 3.5 {
			e.Fatalf("the loops ended early: %s", r)
		}
		// time counts the loop that it waits for: at most the quota, and some of it.
		if share := (times["user"] + times["sys"]) / times["real"]; share > 0.7 || share == 0 {
			e.Errorf("the container had %.2f of a CPU, want at most 0.5: %s", share, r)
		}
	})
}

func TestPidsLimit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		out := e.runOK("--pids-limit", "30", "busybox", "probe", "fork", "100")
		var got int
		if _, err := fmt.Sscanf(out, "refused after %d:", &got); err != nil || got < 5 || got >= 30 {
			e.Errorf("fork = %q, want it refused before 30", out)
		}
		e.want("without a limit", e.runOK("busybox", "probe", "fork", "200"), "started 200")
	})
}

func TestUlimitShmSysctlDevices(t *testing.T) {
	eachRuntime(t, func(e *env) {
		got := e.report("--ulimit", "nofile=123:456", "--ulimit", "core=0", "--ulimit", "nproc=77", "--shm-size", "32m",
			"--sysctl", "net.ipv4.ip_local_port_range=2000 3000", "--sysctl", "net.core.somaxconn=321", "--sysctl", "kernel.shmmni=99",
			"--oom-score-adj", "345", "--device", "/dev/null:/dev/xnull", "--device", "/dev/fuse:/dev/xfuse:r",
			"--device", "/dev/urandom:/dev/random", "-v", "/dev/null:/dev/urandom", "busybox", "sh", "-c", `
echo "nofile=$(ulimit -Sn) $(ulimit -Hn)"
echo "core=$(ulimit -c)"
echo "nproc=$(grep 'Max processes' /proc/self/limits | awk '{print $3,$4}')"
echo "shm=$(df -k /dev/shm | awk 'NR==2{print $2}')"
echo "ports=$(cat /proc/sys/net/ipv4/ip_local_port_range | tr '\t' ' ')"
echo "somaxconn=$(cat /proc/sys/net/core/somaxconn)"
echo "shmmni=$(cat /proc/sys/kernel/shmmni)"
echo "oom=$(cat /proc/self/oom_score_adj)"
echo "device=$(stat -c '%F %t:%T' /dev/xnull) $(echo x >/dev/xnull && wc -c </dev/xnull)"
echo "fuse=$(: </dev/xfuse && echo read) $(: 2>&1 >/dev/xfuse | grep -o "not permitted")"
for d in null zero full random urandom tty ptmx; do [ -e /dev/$d ] || echo "missing=$d"; done
echo "links=$(readlink /dev/fd) $(readlink /dev/stdin) $(readlink /dev/stdout) $(readlink /dev/stderr)"
echo "replaced=$(stat -c %t:%T /dev/random /dev/urandom | xargs)"
echo "full=$(echo x 2>&1 >/dev/full | grep -o 'No space left on device')"
echo "zero=$(head -c 3 /dev/zero | od -An -tx1)"`)
		e.wantReport(got, map[string]string{
			"nofile": "123 456", "core": "0", "nproc": "77 77", "shm": "32768", "ports": "2000 3000", "somaxconn": "321",
			"shmmni": "99", "oom": "345", "fuse": "read not permitted", "device": "character special file 1:3 0", "zero": " 00 00 00",
			"links": "/proc/self/fd /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2", "replaced": "1:9 1:3", "full": "No space left on device",
		})
		if d, ok := got["missing"]; ok {
			e.Errorf("/dev/%s is missing", d)
		}
	})
}

// What process.rlimits does not name is inherited from whoever called create or exec, also in a user namespace, where nobody
// could raise it. (runc 1.1 of Debian 12 raises the soft limit of open files to the hard one, so that both are equal here.)
func TestInheritedRlimits(t *testing.T) {
	limited := func(e *env, limits string, argv ...string) string {
		e.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		r := finish(ctx, exec.CommandContext(ctx, "prlimit", slices.Concat(strings.Fields(limits), argv)...))
		e.wantCode(r, 0)
		return r.stdout
	}
	const (
		creates = "--nofile=3000:3000 --nproc=5000:6000 --core=123000:456000 --sigpending=777:888 --msgqueue=1000:2000 --fsize=1000000000000:unlimited"
		execs   = "--nofile=4000:4000 --nproc=7000:7000 --memlock=65536:131072 --cpu=5000:6000"
	)
	const show = "cat /proc/self/limits"
	for _, users := range []bool{false, true} {
		eachRuntime(t, func(e *env) {
			h := e.byHand()
			b := h.bundle("rlimits", show+"; sleep 1000", func(s *specs.Spec) {
				s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1000, Hard: 2000}}
				if users {
					s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
					s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
					s.Linux.GIDMappings = s.Linux.UIDMappings
				}
			})
			out := filepath.Join(b.dir, "out")
			h.noErr(sh("chmod o+x " + workDir + " " + b.dir + " && chown -R 100000:100000 " + b.rootfs("")))
			limited(e, creates, "sh", "-c", strings.Join(h.argv("run", "--detach", "--bundle", b.dir, b.id), " ")+" </dev/null >"+out+" 2>&1")
			read := func() string {
				text, err := os.ReadFile(out)
				h.noErr(err)
				return string(text)
			}
			if err := waitFor("the limits", func() bool { return strings.Contains(read(), "Max realtime timeout") }); err != nil {
				h.Fatalf("%v: %s", err, read())
			}
			named := strings.NewReplacer("--core=123000:456000", "--core=1000:2000")
			h.want("limits of the process", read(), limited(e, named.Replace(creates), "sh", "-c", show))
			h.want("limits of an exec", limited(e, execs, h.argv("exec", b.id, "sh", "-c", show)...), limited(e, execs+" --core=1000:2000", "sh", "-c", show))
			if h.rt.isVM() {
				h.want("with a soft limit of open files", limited(e, "--nofile=1000:3000", h.argv("exec", b.id, "sh", "-c", "ulimit -Sn; ulimit -Hn")...), "1000\n3000\n")
			}
		})
	}
}

// A core file is there where the host's core_pattern has one.
func TestCoreFile(t *testing.T) {
	eachRuntime(t, func(e *env) {
		pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
		e.noErr(err)
		want := "crashed\n"
		if string(pattern) == "core\n" {
			want += "core" // perhaps with the pid
		}
		const crash = "mkdir /d; cd /d; sh -c 'kill -SEGV $$'; echo crashed; ls"
		got := e.run("--ulimit", "core=-1", "busybox", "sh", "-c", crash)
		e.wantPart("files", got.stdout, want)
		e.want("without core files", e.runOK("--ulimit", "core=0", "busybox", "sh", "-c", crash), "crashed")
	})
}

// docker stats and the OOM killer read the cgroup of the process whose pid is reported.
func TestHostCgroup(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("--memory", "128m", "--cpus", "1.5", "--pids-limit", "500", "busybox", "sleep", "1000")
		text, err := os.ReadFile("/proc/" + e.inspect(id, ".State.Pid") + "/cgroup")
		e.noErr(err)
		for _, controller := range []string{"memory", "cpu", "pids", "freezer", "devices"} {
			e.wantPart("cgroup of the container's pid", string(text), controller+":/"+tag+"/"+id+"\n")
		}
		file := func(controller, name string) int {
			text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, tag, id, name))
			e.noErr(err)
			n, err := strconv.Atoi(strings.TrimSpace(string(text)))
			e.noErr(err)
			return n
		}
		e.want("cpu quota", itoa(file("cpu", "cpu.cfs_quota_us")), itoa(file("cpu", "cpu.cfs_period_us")*3/2))
		limit, pids := file("memory", "memory.limit_in_bytes"), file("pids", "pids.max")
		if e.rt.isVM() {
			if limit < 128<<20 || limit > 1<<30 || pids < 500 {
				e.Errorf("memory limit %d, pids %d, want the container's plus the VM's own", limit, pids)
			}
		} else {
			e.want("memory limit and pids", fmt.Sprint(limit, pids), fmt.Sprint(128<<20, 500))
		}
		if used := file("memory", "memory.usage_in_bytes"); used == 0 {
			e.Errorf("memory usage is 0: what uses memory is not in the cgroup")
		}
		stats := e.ok("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", id)
		if strings.HasPrefix(stats, "0B") || strings.HasSuffix(stats, " 0") || strings.Contains(stats, "--") {
			e.Errorf("docker stats = %q, want memory and processes", stats)
		}
	})
}

// A container is not made in a cgroup that is frozen, where it would never start. One that has processes is said.
func TestFrozenCgroup(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("frozen", "true", nil)
		path := "/" + tag + "/" + b.id
		dir, file, freeze, thaw := "/sys/fs/cgroup/freezer"+path, "freezer.state", "FROZEN", "THAWED"
		if _, err := os.Stat("/sys/fs/cgroup/freezer"); err != nil {
			dir, file, freeze, thaw = "/sys/fs/cgroup"+path, "cgroup.freeze", "1", "0"
		}
		h.noErr(os.MkdirAll(dir, 0o755))
		h.Cleanup(func() { h.shOut("rmdir " + dir + " 2>/dev/null || :") })
		h.noErr(os.WriteFile(filepath.Join(dir, file), []byte(freeze), 0o644))
		h.wantFail("container's cgroup unexpectedly frozen", "create", "--bundle", b.dir, b.id)
		h.noErr(os.WriteFile(filepath.Join(dir, file), []byte(thaw), 0o644))
		h.must("run", "--bundle", b.dir, b.id)

		first := h.create(h.bundle("first", "sleep 1000", nil))
		shares := h.bundle("shares", "true", func(s *specs.Spec) { s.Linux.CgroupsPath = "/" + tag + "/" + first.id })
		r := h.cmd("run", "--bundle", shares.dir, shares.id)
		h.wantCode(r, 0)
		h.wantPart("stderr", r.stderr, "container's cgroup is not empty")
		h.must("delete", "--force", first.id)
	})
}

// What the kernel grants in all is in a container what it is on the host, or more.
func TestLimitsOfTheKernel(t *testing.T) {
	eachRuntime(t, func(e *env) {
		names := strings.Fields("fs/aio-max-nr fs/epoll/max_user_watches fs/file-max fs/mount-max fs/nr_open fs/pipe-max-size " +
			"kernel/pid_max kernel/threads-max user/max_fanotify_marks user/max_inotify_instances user/max_inotify_watches " +
			"user/max_mnt_namespaces user/max_net_namespaces user/max_pid_namespaces user/max_user_namespaces vm/max_map_count")
		got := e.report("busybox", "sh", "-c", "cd /proc/sys; for f in "+strings.Join(names, " ")+"; do echo $f=$(cat $f); done")
		for _, name := range names {
			text, err := os.ReadFile("/proc/sys/" + name)
			e.noErr(err)
			host, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
			e.noErr(err)
			if has, err := strconv.ParseUint(got[name], 10, 64); err != nil || has < host {
				e.Errorf("%s = %q, want at least the host's %d", name, got[name], host)
			}
		}
	})
}

// A process may take its oom_score_adj back to what it was before the runtime raised it, where the runtime itself lacks the
// capability by which the score becomes a floor. So a runc inside can start containers with a lower score than its own.
func TestOOMScoreFloor(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		bound, err := capability.GetBound(capability.CAP_SYS_RESOURCE)
		h.noErr(err)
		want := "lowered\n0\n"
		if bound {
			want = "held\n345\n"
		}
		const lower = "(echo 0 >/proc/self/oom_score_adj) 2>/dev/null && echo lowered || echo held; echo 0 2>/dev/null >/proc/$$/oom_score_adj; cat /proc/$$/oom_score_adj"
		c := h.create(h.bundle("floor", lower+"; exec probe signals", func(s *specs.Spec) {
			s.Process.OOMScoreAdj = new(345)
		}))
		c.start()
		h.expect(c.out, want+"ready\n")
		r := h.cmd("exec", c.id, "sh", "-c", "echo -1 >/proc/self/oom_score_adj")
		if r.code == 0 {
			h.Error("a process without CAP_SYS_RESOURCE has a score below 0")
		}
		process := filepath.Join(workDir, "process.json")
		h.noErr(os.WriteFile(process, []byte(`{"args": ["sh", "-c", "`+lower+`"], "env": ["PATH=/bin"], "cwd": "/", "oomScoreAdj": 345}`), 0o600))
		h.want("stdout of exec", h.must("exec", "--process", process, c.id), want)
		h.must("delete", "--force", c.id)
	})
}
