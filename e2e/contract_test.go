package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The tests of this file have the numbers of the rules in docs/contract.md, "Rules".

func TestContract01PidFileIsDigits(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("pidfile", "sleep 1000", nil)
		h.noErr(os.WriteFile(b.pidFile(), nil, 0o644)) // CRI-O creates it empty
		c := h.create(b)
		c.start()
		for path, flags := range map[string][]string{b.pidFile(): nil, b.dir + "/exec-pid": {"exec", "--detach", "--pid-file", b.dir + "/exec-pid", b.id, "sleep", "1000"}} {
			if flags != nil {
				h.want("exec", startReaper(h.T, reaperJob{Args: h.argv(flags...), Env: h.vars, Dir: "/"}, [3]*os.File{}).wait(0).String(), "exit code 0")
			}
			text, err := os.ReadFile(path)
			h.noErr(err)
			if !regexp.MustCompile(`^[1-9][0-9]*$`).Match(text) {
				h.Errorf("%s holds %q, want digits alone", path, text)
			}
		}
	})
}

// Rules 2, 5, 6 and 7: what the process whose pid is reported is, the moment that create returns.
func TestContract02StandIn(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("standin", "sleep 1000", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		})
		c := h.create(b)
		check := func(what string, pid int, r *reaper) {
			h.Helper()
			stat := strings.Fields(h.shOut(fmt.Sprintf("sed 's/.*) //' /proc/%d/stat", pid)))
			h.want(what+": parent", stat[1], itoa(r.cmd.Process.Pid))
			h.want(what+": process group", stat[2], itoa(pid))
			h.want(what+": session", stat[3], itoa(pid))
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			h.noErr(err)
			for _, controller := range []string{"memory", "cpu", "cpuacct", "cpuset", "pids", "freezer", "devices", "blkio"} {
				h.wantPart(what+": cgroup", string(text), ":"+controller+":/"+tag+"/"+b.id+"\n")
			}
			for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts", "cgroup"} {
				own, err := os.Readlink("/proc/self/ns/" + ns)
				h.noErr(err)
				got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
				h.noErr(err)
				if got == own {
					h.Errorf("%s: %s namespace is the caller's", what, ns)
				}
				init, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.pid, ns))
				h.noErr(err)
				h.want(what+": "+ns+" namespace", got, init)
			}
		}
		check("init", c.pid, c.reaper)
		// podman cp and podman top work on the root of its mount namespace.
		in, err := os.Stat(fmt.Sprintf("/proc/%d/root/bin/probe", c.pid))
		h.noErr(err)
		on, err := os.Stat(b.rootfs("bin/probe"))
		h.noErr(err)
		if !os.SameFile(in, on) {
			h.Errorf("the stand-in is not rooted in the container's rootfs")
		}
		c.start()
		pidFile := b.dir + "/exec-pid"
		x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pid-file", pidFile, b.id, "sleep", "1000"), Env: h.vars, Dir: "/"}, [3]*os.File{})
		h.want("exec", x.wait(0).String(), "exit code 0")
		check("exec", h.readPid(pidFile), x)
		// Exec stand-ins end when init does.
		h.must("kill", b.id, "KILL")
		c.end()
		x.wait(h.readPid(pidFile))
	})
}

func TestContract07NamespacesFromPath(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		h.namedNamespace("bxpath")
		b := h.bundle("nspath", "sleep 1000", func(s *specs.Spec) {
			s.Linux.Namespaces[1] = specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/netns/bxpath"}
		})
		c := h.create(b)
		var want, got unix.Stat_t
		h.noErr(unix.Stat("/run/netns/bxpath", &want))
		h.noErr(unix.Stat(fmt.Sprintf("/proc/%d/ns/net", c.pid), &got))
		if got.Ino != want.Ino {
			h.Errorf("network namespace %d, want the path's %d", got.Ino, want.Ino)
		}
	})
}

// Rules 3 and 4: what outlives a command holds none of its outputs nor of its other descriptors.
func TestContract03And04DescriptorsAreLetGo(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("fds", "ls /proc/self/fd; probe inherited; exec sleep 1000", nil)
		out, errs, leak := h.collect(), h.collect(), h.collect()
		r := startReaper(h.T, reaperJob{Args: h.createArgs(b), Env: h.vars, Dir: b.dir}, [3]*os.File{nil, out.w, errs.w}, leak.w)
		pipes := map[string]string{}
		for name, c := range map[string]*collected{"stdout": out, "stderr": errs} {
			link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", c.w.Fd()))
			h.noErr(err)
			pipes[link] = name
			h.noErr(c.w.Close())
		}
		h.noErr(leak.w.Close())
		h.want("create", r.wait(0).String(), "exit code 0")
		h.eof("descriptor 3 of create", leak)
		pid := h.readPid(b.pidFile())
		links, err := filepath.Glob("/proc/[0-9]*/fd/*")
		h.noErr(err)
		for _, path := range links {
			link, err := os.Readlink(path)
			if holder := strings.Split(path, "/")[2]; err == nil && pipes[link] != "" && holder != itoa(pid) && holder != itoa(os.Getpid()) {
				comm, _ := os.ReadFile("/proc/" + holder + "/comm")
				h.Errorf("%s of create is held by %s (%s), want by the stand-in %d alone", pipes[link], holder, strings.TrimSpace(string(comm)), pid)
			}
		}

		h.must("start", b.id) // fails if what it leaves behind holds its output

		// The same of a detached exec and its descriptor 3, and of the commands that only ask.
		leak = h.collect()
		x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pid-file", b.dir+"/exec-pid", b.id, "sleep", "1000"), Env: h.vars, Dir: "/"}, [3]*os.File{}, leak.w)
		h.noErr(leak.w.Close())
		h.want("exec", x.wait(0).String(), "exit code 0")
		h.eof("descriptor 3 of exec", leak)
		for _, args := range [][]string{{"state", b.id}, {"ps", b.id}, {"kill", b.id, "0"}, {"list"}, {"exec", b.id, "true"}} {
			h.must(args...)
		}
		h.must("kill", b.id, "KILL")
		r.wait(pid)
		h.must("delete", b.id)
		for what, c := range map[string]*collected{"stdout": out, "stderr": errs} {
			h.eof(what+" of create after delete", c)
		}
		h.want("descriptors in the container", out.wait(), "0\n1\n2\n3\n") // 3 is that of ls; probe prints none
		h.want("stderr", errs.wait(), "")
	})
}

// eof waits for the end of a pipe that nobody may hold any more.
func (h *hand) eof(what string, c *collected) {
	h.Helper()
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		h.Fatalf("%s is still held by somebody", what)
	}
}

// The texts that daemons look for, and from create and exec, not from start.
func TestContract08MissingCommandFailsCreate(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		live := h.bundle("live", "sleep 1000", nil)
		c := h.create(live)
		c.start()
		for i, m := range []struct{ command, text string }{
			{"nosuch", `exec: \\?"nosuch\\?": executable file not found in \$PATH`},
			{"/bin/nosuch", `exec: \\?"/bin/nosuch\\?": stat /bin/nosuch: no such file or directory`},
			{"/etc", `exec: \\?"/etc\\?": (permission denied|is a directory)`}, // runc 1.1.5; 1.1.15
			{"/etc/not-executable", `exec: \\?"/etc/not-executable\\?": permission denied`},
		} {
			b := h.bundle(fmt.Sprintf("missing%d", i), "", func(s *specs.Spec) { s.Process.Args = []string{m.command} })
			h.wantFail(`create failed: .*`+m.text, "create", "--bundle", b.dir, b.id)
			h.wantCode(h.cmd("state", b.id), 1)

			// As the shim asks, in JSON: the last error of the file is what is shown.
			logPath := filepath.Join(b.dir, "log.json")
			r := h.cmd("--log", logPath, "--log-format", "json", "create", "--bundle", b.dir, b.id)
			h.wantCode(r, 1)
			text, err := os.ReadFile(logPath)
			h.noErr(err)
			if lines := strings.Split(strings.TrimSpace(string(text)), "\n"); len(lines) != 1 {
				h.Errorf("%d lines in the log of a failing create, want one: %s", len(lines), text)
			}
			if !regexp.MustCompile(`"level":"error","msg":"[^{}]*create failed: .*` + m.text + `.*","time":"2[0-9T:-]*[Z+-].*"`).Match(text) {
				h.Errorf("log = %s, want level, msg with %q, time", text, m.text)
			}

			r = h.cmd("exec", live.id, m.command)
			h.wantCode(r, 255)
			if !regexp.MustCompile(`exec failed: .*` + m.text).MatchString(r.stderr) {
				h.Errorf("exec of %s: %s", m.command, r)
			}
		}
	})
}

// Callers turn these words into "bad command"; about the runtime's own parts they would mislead.
func TestContract09OwnPartsMissing(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("parts", "true", nil)
		lone := filepath.Join(b.dir, "boxlite")
		h.shOut("cp " + h.rt.bin + " " + lone)
		empty := filepath.Join(b.dir, "empty")
		h.noErr(os.Mkdir(empty, 0o755))
		cases := map[string]struct{ prepare, bin, flags string }{
			"kernel":    {"[ ! -e /usr/local/lib/boxlite ] || mount --bind " + empty + " /usr/local/lib/boxlite", lone, ""},
			"QEMU":      {"for q in /usr/bin/qemu-system-*; do mount --bind /dev/null $q; done", h.rt.bin, ""},
			"virtiofsd": {"mount --bind " + empty + " /usr/lib/qemu; [ ! -e /usr/libexec/virtiofsd ] || mount --bind /dev/null /usr/libexec/virtiofsd", h.rt.bin, ""},
			"KVM":       {"mount --bind /dev/null /dev/kvm", h.rt.bin, "--accel kvm"},
		}
		if cpu := h.shOut("cat /proc/cpuinfo"); !strings.Contains(cpu, " vmx ") && !strings.Contains(cpu, " svm ") {
			cases["kvm"] = struct{ prepare, bin, flags string }{":", h.rt.bin, "--accel kvm"} // as some clouds show it
		}
		for name, m := range cases {
			began := time.Now()
			out, err := exec.Command("unshare", "-m", "sh", "-ec", fmt.Sprintf("%s; exec %s --root %s %s create --bundle %s %s </dev/null", m.prepare, m.bin, h.root, m.flags, b.dir, b.id)).CombinedOutput()
			if err == nil {
				h.Errorf("create without %s succeeds", name)
				h.must("delete", "--force", b.id)
				continue
			}
			if took := time.Since(began); took > 20*time.Second {
				h.Errorf("create without %s fails after %v, want within seconds", name, took)
			}
			text := strings.TrimSpace(string(out))
			if strings.Contains(text, "\n") || !strings.Contains(strings.ToLower(text), strings.ToLower(name)) {
				h.Errorf("create without %s says %q, want one line that names it", name, text)
			}
			for _, words := range []string{"not found", "no such file", "permission denied", "operation not permitted", "not a directory", "is a directory"} {
				if strings.Contains(strings.ToLower(text), words) {
					h.Errorf("create without %s says %q, which callers take for a bad command: %q", name, text, words)
				}
			}
		}
	})
}

// conmon takes what is in the pipe when the stand-in has ended, and nothing that comes later.
func TestContract10OutputBeforeTheEnd(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("flush", "probe gen 9 900000; echo last >&2", nil)
		r, w, err := os.Pipe()
		h.noErr(err)
		defer r.Close()
		_, err = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
		h.noErr(err)
		errs := h.collect()
		rp := startReaper(h.T, reaperJob{Args: h.createArgs(b), Env: h.vars, Dir: b.dir}, [3]*os.File{nil, w, errs.w})
		h.noErr(w.Close())
		h.noErr(errs.w.Close())
		h.want("create", rp.wait(0).String(), "exit code 0")
		h.must("start", b.id)
		h.want("end", rp.wait(h.readPid(b.pidFile())).String(), "exit code 0")
		n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
		h.noErr(err)
		h.want("bytes in the pipe when the stand-in has ended", itoa(n), "900000")
		h.want("stderr", errs.wait(), "last\n")
	})
}

// podman runs these with nothing but an empty XDG_RUNTIME_DIR, and without --root.
func TestContract11NoPath(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		h.root, h.vars = "", []string{"XDG_RUNTIME_DIR="}
		b := h.bundle("nopath", "echo $PATH; exec probe signals", nil)
		c := h.create(b)
		if _, err := os.Stat("/run/" + h.rt.name + "/" + b.id); err != nil {
			h.Errorf("state: %v", err)
		}
		c.start()
		h.wantStatus(b.id, specs.StateRunning)
		h.want("exec", h.must("exec", b.id, "sh", "-c", "echo $PATH"), "/bin\n")
		h.must("kill", b.id, "KILL")
		c.end()
		h.must("delete", "--force", b.id)
	})
}

// Rule 12 is TestNetworkAppearsBetweenCreateAndStart.

// The console goes to the caller in one message over its socket.
func TestConsoleSocket(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("console", "stty size; test -t 0 && echo terminal; read line; echo got $line; exit 3", func(s *specs.Spec) {
			s.Process.Terminal = true
			s.Process.ConsoleSize = &specs.Box{Height: 31, Width: 97}
		})
		h.wantFail("(?i)console.?socket", "create", "--bundle", b.dir, b.id)
		console := h.listenConsole()
		c := h.create(b, "--console-socket", console.path)
		master := console.receive()
		s := &terminalReader{f: master}
		c.start()
		h.want("first lines", s.until("terminal\r\n"), "31 97\r\nterminal\r\n")
		_, err := master.WriteString("typed\n")
		h.noErr(err)
		h.wantPart("answer", s.until("got typed\r\n"), "got typed\r\n")
		h.want("end", c.end().String(), "exit code 3")
	})
}

func TestVersionAndFeatures(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		h.root, h.vars = "", nil
		v := h.cmd("--version")
		h.wantCode(v, 0)
		h.want("stderr", v.stderr, "")
		if !regexp.MustCompile(`^` + h.rt.name + ` version \S+\ncommit: \S+\nspec: 1\.[0-9.]+\S*\n`).MatchString(v.stdout) {
			h.Errorf("version: %s", v)
		}
		if n := strings.Count(v.stdout, "version"); n != 1 {
			h.Errorf("the word version is %d times in %q, want once", n, v.stdout)
		}
		f := h.cmd("features")
		h.wantCode(f, 0)
		for _, part := range []string{`"ociVersionMin"`, `"ociVersionMax"`, `"prestart"`, `"rbind"`, `"CAP_CHOWN"`, `"seccomp"`} {
			h.wantPart("features", f.stdout, part)
		}
		if r := h.cmd("no-such-command"); r.code == 0 {
			h.Errorf("unknown command: %s", r)
		}
	})
}
