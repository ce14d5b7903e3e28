package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// logHook appends its name, its directory and the state that it reads to a file, of the host or of the container.
func logHook(name, file string) []specs.Hook {
	return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", `echo "` + name + ` $0 $ADDED $(pwd) $(cat)" >>` + file, "hook-" + name}, Env: []string{"PATH=/bin:/usr/bin", "ADDED=env"}}}
}

func failingHook(file string) []specs.Hook {
	return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo ran >>" + file + "; echo because >&2; exit 3"}}}
}

// Each kind of hook runs once, in order, in its directory, with the state on stdin and nothing but its own environment. runc 1.1 runs the
// poststart hooks at create already.
func TestHooks(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("hooks", "echo process >>/log; sleep 1000", func(s *specs.Spec) {
			log := workDir + "/bundle-hooks/rootfs/log"
			s.Hooks = &specs.Hooks{
				//lint:ignore SA1019 deprecated in the spec, but what docker uses
				Prestart:        logHook("prestart", log),
				CreateRuntime:   logHook("createRuntime", log),
				CreateContainer: logHook("createContainer", log),
				StartContainer:  append(logHook("startContainer", "/log"), logHook("second", "/log; [ $$ -lt 100 ] && hostname >/where; id -u >>/where")...),
				Poststart:       logHook("poststart", log),
				Poststop:        logHook("poststop", log),
			}
			s.Process.User.UID, s.Process.Cwd = 0, "/bin"
		})
		c := h.create(b)
		atCreate, atStart := "prestart createRuntime createContainer", " startContainer second poststart"
		if !h.rt.isVM() {
			atCreate, atStart = atCreate+" poststart", " startContainer second"
		}
		h.wantHooks(b, c.pid, atCreate)
		c.start()
		if err := waitFor("the process", func() bool { return strings.Contains(h.hookLog(b), "process\n") }); err != nil {
			h.Fatal(err)
		}
		h.wantHooks(b, c.pid, atCreate+atStart)
		where, err := os.ReadFile(b.rootfs("where"))
		h.noErr(err)
		h.want("host name, with a small pid, and user of the hook", string(where), "by-hand\n0\n")
		h.must("kill", b.id, "KILL")
		h.waitStatus(b.id, specs.StateStopped)
		h.must("delete", b.id)
		h.wantHooks(b, c.pid, atCreate+atStart+" poststop")
	})
}

func (h *hand) hookLog(b bundle) string {
	h.Helper()
	text, err := os.ReadFile(b.rootfs("log"))
	h.noErr(err)
	return string(text)
}

// wantHooks compares the hooks that have run, and looks at what they were told.
func (h *hand) wantHooks(b bundle, pid int, want string) {
	h.Helper()
	var names []string
	for line := range strings.Lines(h.hookLog(b)) {
		fields := strings.SplitN(strings.TrimSpace(line), " ", 5)
		if fields[0] == "process" {
			continue
		}
		names = append(names, fields[0])
		if len(fields) < 5 {
			h.Fatalf("hook wrote %q", line)
		}
		h.want("arguments and environment of "+fields[0], fields[1]+" "+fields[2], "hook-"+fields[0]+" env")
		var st specs.State
		if err := json.Unmarshal([]byte(fields[4]), &st); err != nil {
			h.Fatalf("state of %s: %v: %s", fields[0], err, fields[4])
		}
		h.want("id and bundle for "+fields[0], st.ID+" "+st.Bundle, b.id+" "+b.dir)
		status, at, dir := "created", pid, b.dir
		if !h.rt.isVM() && strings.Contains("prestart createRuntime createContainer", fields[0]) {
			status = "creating"
		}
		switch fields[0] {
		case "createContainer":
			dir = filepath.Join(b.dir, "rootfs")
			if !h.rt.isVM() {
				at = 1
			}
		case "startContainer", "second":
			status, at, dir = "created", 1, "/bin" // as it is seen from inside
		case "poststart":
			status = "running"
			if !h.rt.isVM() {
				status = "created"
			}
		case "poststop":
			status, at = "stopped", 0
			if !h.rt.isVM() {
				dir, _ = os.Getwd() // that of delete
			}
		}
		h.want("directory, status and pid for "+fields[0], fields[3]+" "+string(st.Status)+" "+itoa(st.Pid), dir+" "+status+" "+itoa(at))
	}
	h.want("hooks", strings.Join(names, " "), want)
}

// A hook that fails, or takes longer than it may, fails the command that ran it.
func TestHookFails(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		log := workDir + "/bundle-hookfails/rootfs/log"
		b := h.bundle("hookfails", "echo the process ran; sleep 1000", nil)
		set := func(edit func(*specs.Hooks)) {
			spec := defaultSpec(b.id, "sh", "-c", "echo the process ran; sleep 1000")
			spec.Hooks = &specs.Hooks{Poststop: logHook("poststop", log)}
			edit(spec.Hooks)
			h.writeSpec(b, spec)
			h.noErr(os.WriteFile(b.rootfs("log"), nil, 0o644))
		}
		wantLog := func(want string) {
			h.Helper()
			var names []string
			for line := range strings.Lines(h.hookLog(b)) {
				names = append(names, strings.Fields(line)[0])
			}
			h.want("log", strings.Join(names, " "), want)
		}
		for name, edit := range map[string]func(*specs.Hooks){
			"createRuntime":   func(s *specs.Hooks) { s.CreateRuntime = failingHook(log) },
			"createContainer": func(s *specs.Hooks) { s.CreateContainer = failingHook(log) },
		} {
			set(edit)
			h.wantFail(name+" hook #0: .*exit status 3.*because", "create", "--bundle", b.dir, b.id)
			h.wantFail("container does not exist", "state", b.id)
			wantLog("ran poststop")
		}

		one := 1
		for name, hooks := range map[string][]specs.Hook{
			"startContainer hook #1: .*exit status 3.*because":                    append(logHook("first", "/log"), failingHook("/log")...),
			`startContainer hook #0: /bin/sh: timed out after 1 s`:                {{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 1000"}, Timeout: &one}},
			`startContainer hook #0: .*/no/hook: no-such-file`:                    {{Path: "/no/hook"}},
			`startContainer hook #0: .*signal: killed`:                            {{Path: "/bin/sh", Args: []string{"sh", "-c", "kill -9 $$"}}},
			`startContainer hook #0: .*exit status 1, output: .*x{1000}\\\\nend"`: {{Path: "/bin/sh", Args: []string{"sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x; echo; echo end; exit 1"}}},
		} {
			set(func(s *specs.Hooks) { s.StartContainer = hooks })
			c := h.create(b)
			h.wantFail(name, "start", b.id)
			c.wantKilled()
			h.wantStatus(b.id, specs.StateStopped)
			h.want("output", c.out.wait(), "")
			h.must("delete", b.id)
		}

		set(func(s *specs.Hooks) { s.Poststart = failingHook(log) })
		c := h.create(b)
		h.wantFail("poststart hook #0: .*because", "start", b.id)
		c.wantKilled()
		h.wantFail("container does not exist", "state", b.id)
		wantLog("ran poststop")

		set(func(s *specs.Hooks) { s.Poststop = failingHook(log) })
		c = h.create(b)
		r := h.cmd("delete", b.id)
		h.wantCode(r, 0)
		h.wantPart("the warning", r.stderr, "level=warning")
		c.end()
		wantLog("ran")
	})
}

// Of a container whose poststart hook fails nothing is left, and its poststop hooks have run.
func TestPoststartFails(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		log := workDir + "/bundle-poststart/rootfs/log"
		b := h.bundle("poststart", "sleep 1000", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{Poststart: failingHook(log), Poststop: logHook("poststop", log)}
		})
		h.noErr(os.WriteFile(b.rootfs("log"), nil, 0o644))
		r := h.cmd("run", "--bundle", b.dir, b.id)
		h.wantCode(r, 1)
		h.wantPart("stderr", r.stderr, "because")
		h.wantFail("container does not exist", "state", b.id)
		text := h.hookLog(b)
		h.wantPart("log", text, "ran\n")
		h.wantPart("log", text, "poststop ")
	})
}

// What is said of a hook that a signal has killed is the same everywhere: in the runtime's namespaces, in the container's, and
// inside it, where the container's seccomp filter holds.
func TestHookKilled(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("hookkilled", "", nil)
		fails := func(want string, edit func(*specs.Spec)) {
			h.Helper()
			spec := defaultSpec(b.id, "true")
			edit(spec)
			h.writeSpec(b, spec)
			r := h.cmd("run", "--bundle", b.dir, b.id)
			h.wantCode(r, 1)
			h.wantPart("stderr", r.stderr, "error running hook: signal: "+want)
		}
		hook := func(signal string) []specs.Hook {
			return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "kill -" + signal + " $$"}, Env: []string{"PATH=/bin:/usr/bin"}}}
		}
		for signal, want := range map[string]string{"KILL": "killed, ", "TERM": "terminated, ", "SYS": "bad system call, ", "40": "signal 40, "} {
			fails(want, func(s *specs.Spec) { s.Hooks = &specs.Hooks{StartContainer: hook(signal)} })
		}
		fails("bad system call, ", func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: hook("SYS")} })
		fails("terminated, ", func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateContainer: hook("TERM")} })
		fails("bad system call", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/probe", Args: []string{"probe", "syscall", "setdomain", "0", "0"}}}}
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: []specs.LinuxSyscall{
				{Names: []string{"setdomainname"}, Action: specs.ActKillProcess},
			}}
		})
		fails("segmentation fault", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1 << 30, Hard: 1 << 30}}
			s.Hooks = &specs.Hooks{StartContainer: hook("SEGV")}
		})
	})
}
