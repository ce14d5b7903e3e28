package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestLogsAndAttach(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("-i", "busybox", "sh", "-c", "echo out; echo err >&2; while read line && [ $line != bye ]; do echo got $line; done; echo end of input")
		s := e.session("attach", id)
		// attach shows what comes after it; the answer to the first line is that.
		s.send("one\n")
		s.expect("got one\n")
		s.send("two\n")
		s.expect("got two\n")
		s.send("bye\n")
		s.expect("end of input\n")
		e.want("exit code of attach", itoa(s.end()), "0")
		e.want("wait", e.ok("wait", id), "0")
		r := e.docker("logs", id)
		e.want("logs, stdout", r.stdout, "out\ngot one\ngot two\nend of input\n")
		e.want("logs, stderr", r.stderr, "err\n")
		e.want("logs --tail", e.ok("logs", "--tail", "1", id), "end of input")
	})
}

func TestStop(t *testing.T) {
	eachRuntime(t, func(e *env) {
		// A process that handles TERM ends as it likes.
		id := e.startReady("ready", "busybox", "probe", "signals")
		e.ok("stop", "-t", "60", id)
		e.want("exit code", e.inspect(id, ".State.ExitCode"), "5")
		e.want("logs", e.ok("logs", id), "ready\nSIGTERM")

		// One that does not is killed after the grace.
		id = e.start("busybox", "sleep", "1000")
		began := time.Now()
		e.ok("stop", "-t", "2", id)
		if took := time.Since(began); took < 2*time.Second {
			e.Errorf("stop took %v, want the grace of 2 s", took)
		}
		e.want("exit code", e.inspect(id, ".State.ExitCode"), "137")

		// The signal may be another.
		id = e.startReady("ready", "--stop-signal", "USR1", "busybox", "probe", "signals")
		e.ok("stop", "-t", "1", id)
		e.want("logs", e.ok("logs", id), "ready\nSIGUSR1")
	})
}

func TestKillWithEachSignal(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("busybox", "probe", "signals")
		s := e.session("logs", "-f", id)
		s.expect("ready\n")
		for _, signal := range [][2]string{
			{"HUP", "SIGHUP"},
			{"SIGINT", "SIGINT"},
			{"3", "SIGQUIT"},
			{"usr1", "SIGUSR1"},
			{"SIGUSR2", "SIGUSR2"},
			{"CONT", "SIGCONT"},
			{"WINCH", "SIGWINCH"},
			{"40", "signal 40"},
			{"TERM", "SIGTERM"},
		} {
			e.ok("kill", "-s", signal[0], id)
			s.expect(signal[1] + "\n")
		}
		e.want("wait", e.ok("wait", id), "5")
		r := e.docker("kill", id)
		e.wantPart("kill of a stopped one", r.stderr, "is not running")
	})
}

// docker run hands the signals that it gets itself to the container.
func TestSignalProxy(t *testing.T) {
	eachRuntime(t, func(e *env) {
		s := e.session(e.runArgs("busybox", "probe", "signals")...)
		s.expect("ready\n")
		for _, name := range []string{"HUP", "USR1", "TERM"} {
			e.shOut("kill -" + name + " " + itoa(s.cmd.Process.Pid))
			s.expect("SIG" + name + "\n")
		}
		e.want("exit code", itoa(s.end()), "5")
	})
}

func TestRestart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		// What the container wrote to its root is there again.
		id := e.start("busybox", "sh", "-c", "echo start >>/starts; cat /starts; trap 'exit 0' TERM; sleep 1000 & wait")
		count := func(want string) {
			e.Helper()
			if err := waitFor("start "+want, func() bool {
				return strings.TrimSpace(e.docker("exec", id, "grep", "-c", "start", "/starts").stdout) == want
			}); err != nil {
				e.Fatal(err)
			}
		}
		count("1")
		pid := e.inspect(id, ".State.Pid")
		e.ok("restart", "-t", "30", id)
		count("2")
		if now := e.inspect(id, ".State.Pid"); now == pid {
			e.Errorf("pid after restart = %s, the same", now)
		}
		e.ok("kill", id)
		e.ok("wait", id)
		e.ok("start", id)
		count("3")
	})
}

func TestRestartPolicy(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("--restart", "on-failure:2", "busybox", "sh", "-c", "echo run; exit 3")
		// docker wait returns at the first end; the policy has ended when the container is exited and was restarted twice.
		if err := waitFor("two restarts", func() bool {
			return e.inspect(id, ".State.Status") == "exited" && e.inspect(id, ".RestartCount") == "2"
		}); err != nil {
			e.Fatal(err)
		}
		e.want("exit code", e.inspect(id, ".State.ExitCode"), "3")
		e.want("logs", e.ok("logs", id), "run\nrun\nrun")
	})
}

func TestRenameInspectTopAndRemove(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("--name", "first", "busybox", "sh", "-c", "sleep 1000 & sleep 1000")
		e.ok("rename", "first", "second")
		e.want("name", e.inspect(id, ".Name"), "/second")
		e.want("state", e.inspect(id, ".State.Status"), "running")
		e.want("runtime", e.inspect(id, ".HostConfig.Runtime"), e.rt.name)
		e.want("exec by the new name", e.exec("second", "echo", "ok"), "ok")
		// top lists processes of the host: the container's, or those that stand for them.
		e.ok("exec", "-d", "second", "sleep", "77")
		top := ""
		if err := waitFor("the commands in top", func() bool {
			top = e.ok("top", "second")
			return strings.Contains(top, "sleep 1000") && strings.Contains(top, "sleep 77")
		}); err != nil {
			e.Errorf("%v: %s", err, top)
		}
		if e.rt.isVM() && strings.Count(top, "\n") != 2 {
			e.Errorf("top = %s\nwant the container's process and the exec's", top)
		}
		r := e.docker("rm", "second")
		e.wantCode(r, 1)
		if !regexp.MustCompile(`cannot remove (a running container|container "/?second": container is running)`).MatchString(r.stderr) { // Docker 20.10; 26, 29
			e.Errorf("rm of a running one = %q", r.stderr)
		}
		e.ok("rm", "-f", "second")
		e.wantCode(e.docker("inspect", id), 1)

		// A stopped one is removed without force, a created one too.
		e.ok("create", "--name", "third", "--runtime", e.rt.name, "busybox", "true")
		e.ok("rm", "third")
		e.ok("create", "--name", "fourth", "--runtime", e.rt.name, "busybox", "sh", "-c", "echo attached; exit 4")
		r = e.docker("start", "-a", "fourth")
		e.wantCode(r, 4)
		e.want("start -a", r.stdout, "attached\n")
		e.ok("rm", "fourth")
	})
}

// The runtime as dockerd runs it with runtimeArgs: through a script made by dockerd, and with more in its log.
func TestRuntimeArgs(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.want("with --debug", e.ok("run", "--rm", "--runtime", e.rt.name+"-debug", "busybox", "echo", "ok"), "ok")
		r := e.docker("run", "--rm", "--runtime", e.rt.name+"-debug", "busybox", "nosuch")
		e.wantCode(r, 127)
		e.wantPart("the error, not a debug line", r.stderr, `exec: "nosuch": executable file not found in $PATH`)
	})
}
