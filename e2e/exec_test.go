package e2e

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/e2e/stream"
)

func TestExec(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("-e", "FROM_RUN=1", "-w", "/tmp", "--user", "7", "busybox", "sleep", "1000")
		r := e.docker("exec", id, "sh", "-c", "echo out; echo err >&2; exit 42")
		e.wantCode(r, 42)
		e.want("stdout", r.stdout, "out\n")
		e.want("stderr", r.stderr, "err\n")

		got := parseReport(e.exec("-e", "FROM_EXEC=2", id, "sh", "-c",
			`echo "env=$FROM_RUN$FROM_EXEC"; echo "cwd=$(pwd)"; echo "id=$(id -u)"; echo "init=$(cat /proc/1/comm)"; echo "host=$(hostname)"`))
		e.wantReport(got, map[string]string{"env": "12", "cwd": "/tmp", "id": "7", "init": "sleep", "host": id[:12]})
		got = parseReport(e.exec("-u", "user", "-w", "/etc", id, "sh", "-c", `echo "id=$(id -u) $(id -G)"; echo "cwd=$(pwd)"; echo "home=$HOME"`))
		e.wantReport(got, map[string]string{"id": "1000 1001 1002", "cwd": "/etc", "home": "/home/user"})
		// Capabilities are per process: none for another user, docker's for root.
		for user, want := range map[string]string{"user": "0000000000000000", "root": "00000000a80425fb"} {
			e.want("capabilities of "+user, e.exec("-u", user, id, "sh", "-c", "grep CapEff /proc/self/status | cut -f2"), want)
		}

		r = e.dockerIn(strings.NewReader("piped in"), "exec", "-i", id, "cat")
		e.want("stdin", r.stdout, "piped in")
		e.wantCode(e.docker("exec", id, "sh", "-c", "kill -KILL $$"), 137)
		e.wantCode(e.docker("exec", id, "sh", "-c", "kill -TERM $$"), 143)
	})
}

func TestExecOfMissingCommand(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("busybox", "sleep", "1000")
		notFound := 126 // of dockerd up to 26, for all of them
		if e.d.major() >= 29 {
			notFound = 127
		}
		for command, want := range map[string]struct {
			code int
			text string
		}{
			"nosuch":              {notFound, `exec: "nosuch": executable file not found in $PATH`},
			"/nosuch":             {notFound, `stat /nosuch: no such file or directory`},
			"/etc/not-executable": {126, `permission denied`},
		} {
			r := e.docker("exec", id, command)
			e.wantCode(r, want.code)
			e.wantPart("output", r.stdout+r.stderr, want.text)
			e.wantPart("output", r.stdout+r.stderr, "exec failed")
		}
		// An exec makes no directories.
		for dir, text := range map[string]string{"/nosuch": "no such file or directory", "/etc/passwd": "not a directory"} {
			r := e.docker("exec", "-w", dir, id, "pwd")
			e.wantCode(r, notFound)
			e.wantPart("output", r.stdout+r.stderr, `exec failed: unable to start container process: chdir to cwd ("`+dir+`") set in config.json failed: `+text)
		}
		e.want("the container after it", e.exec(id, "sh", "-c", "ls -d /etc; test ! -e /nosuch || echo made"), "/etc")
	})
}

func TestExecWithTerminal(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("busybox", "sleep", "1000")
		r := e.docker("exec", "-t", id, "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && echo terminal; exit 6")
		e.wantCode(r, 6)
		e.want("stdout", r.stdout, "terminal\r\n")

		s := e.terminal("exec", "-it", id, "probe", "tty")
		s.expect("size ")
		s.resizeUntil(33, 99, "size 33 99")
		s.send("bye\r")
		e.want("exit code", itoa(s.end()), "0")

		// Ctrl-C reaches the process of this terminal and no other.
		s = e.terminal("exec", "-it", id, "sh", "-c", "echo sleeps; exec sleep 1000")
		s.expect("sleeps\r\n")
		s.send("\x03")
		e.want("exit code after Ctrl-C", itoa(s.end()), "130")
		e.want("the container after it", e.inspect(id, ".State.Status"), "running")
	})
}

func TestManyExecsAtOnce(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("busybox", "sleep", "1000")
		const n = 20
		type answer struct {
			i int
			r result
		}
		answers := make(chan answer)
		for i := range n {
			go func() {
				in := stream.NewReader(uint64(i), 1<<20)
				answers <- answer{i, e.dockerIn(in, "exec", "-i", id, "sh", "-c", fmt.Sprintf("probe sum; exit %d", i))}
			}()
		}
		for range n {
			a := <-answers
			e.wantCode(a.r, a.i)
			want, err := stream.Sum(stream.NewReader(uint64(a.i), 1<<20))
			e.noErr(err)
			e.want(fmt.Sprintf("stream of exec %d", a.i), strings.TrimSpace(a.r.stdout), want)
		}
	})
}

func TestExecDetachedAndEndOfContainer(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("busybox", "sleep", "1000")
		e.ok("exec", "-d", id, "sh", "-c", "echo made >/tmp/made; exec sleep 1000")
		if err := waitFor("the detached exec works", func() bool { return e.docker("exec", id, "cat", "/tmp/made").stdout == "made\n" }); err != nil {
			e.Error(err)
		}
		// A running exec ends with the container, and its client learns it.
		s := e.session("exec", id, "sh", "-c", "echo running; exec sleep 1000")
		s.expect("running\n")
		e.ok("kill", id)
		if code := s.end(); code != 137 {
			e.Errorf("exec ended with %d, want 137", code)
		}
		r := e.docker("exec", id, "true")
		e.wantCode(r, 1)
		e.wantPart("exec of a stopped one", r.stderr, "is not running")
	})
}

// What an exec's process leaves behind keeps its outputs, and goes on to write into them.
func TestExecLeavesChildren(t *testing.T) {
	const (
		child  = "(while kill -0 $$ 2>/dev/null; do sleep .05; done; seq 3000) & echo first"
		filter = "rm -f /tmp/f; mkfifo /tmp/f; tee /tmp/log </tmp/f & exec >/tmp/f; seq 3000"
	)
	eachRuntime(t, func(e *env) {
		id := e.start("busybox", "sleep", "1000")
		e.want("lines of a child", itoa(strings.Count(e.exec(id, "sh", "-c", child)+"\n", "\n")), "3001")
		e.want("lines through a child", itoa(strings.Count(e.exec(id, "sh", "-c", filter)+"\n", "\n")), "3000")
		e.want("its log", e.exec(id, "wc", "-l", "/tmp/log"), "3000 /tmp/log")

		h := e.byHand()
		b := h.bundle("children", "sleep 1000", nil)
		h.create(b).start()
		r := h.cmd("exec", b.id, "sh", "-c", child+"; exit 4")
		h.wantCode(r, 4)
		h.want("lines in the foreground", itoa(strings.Count(r.stdout, "\n")), "3001")

		// Detached, the command's process ends with the container's, and the child is told when nobody reads any more.
		reader, writer, err := os.Pipe()
		h.noErr(err)
		pidFile := filepath.Join(b.dir, "exec-pid")
		script := "(trap '' PIPE; while kill -0 $$ 2>/dev/null; do sleep .05; done; while echo more; do sleep .05; done; echo >/tmp/told) & echo first; exit 5"
		x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pid-file", pidFile, b.id, "sh", "-c", script), Env: h.vars, Dir: "/"}, [3]*os.File{nil, writer, nil})
		h.noErr(writer.Close())
		h.want("exec --detach", x.wait(0).String(), "exit code 0")
		h.want("the exec process", x.wait(h.readPid(pidFile)).String(), "exit code 5")
		lines := make([]byte, len("first\nmore\n"))
		_, err = io.ReadFull(reader, lines)
		h.noErr(err)
		h.want("lines", string(lines), "first\nmore\n")
		h.noErr(reader.Close())
		if err := waitFor("the child is told that its reader has gone", func() bool { return h.cmd("exec", b.id, "test", "-e", "/tmp/told").code == 0 }); err != nil {
			h.Error(err)
		}
		h.must("delete", "--force", b.id)
	})
}

// exec --debug logs what is executed, as whom and how, and how it ended; not the environment.
func TestExecDebug(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("exec-debug", "sleep 1000", nil)
		h.create(b).start()
		log, pidFile := filepath.Join(b.dir, "log"), filepath.Join(b.dir, "exec-pid")
		h.flags = []string{"--debug", "--log", log}
		script := []string{b.id, "sh", "-c", "exit 7"}
		h.wantCode(h.cmd(append([]string{"exec", "-e", "SECRET=x", "--user", "5:6", "--cwd", "/etc"}, script...)...), 7)
		x := startReaper(h.T, reaperJob{Args: h.argv(append([]string{"exec", "--detach", "--pid-file", pidFile}, script...)...), Env: h.vars, Dir: "/"}, [3]*os.File{})
		h.want("exec --detach", x.wait(0).String(), "exit code 0")
		h.want("the exec process", x.wait(h.readPid(pidFile)).String(), "exit code 7")
		h.flags = nil
		raw, err := os.ReadFile(log)
		h.noErr(err)
		text := string(raw)
		for _, want := range []string{
			`command="[sh -c exit 7]" cwd="/etc" uid="5" gid="6" terminal="false" cgroup="/"`, "standIn=\"the caller\"", "standIn=\"a process of its own\"", "join=",
		} {
			h.wantPart("log", text, want)
		}
		h.want("ends in the log", itoa(strings.Count(text, `code="7" signal="0"`)), "2")
		if strings.Contains(text, "SECRET") {
			h.Errorf("the environment is in the log: %s", clip(text))
		}
	})
}
