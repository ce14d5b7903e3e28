package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestTerminalWithoutInput(t *testing.T) {
	eachRuntime(t, func(e *env) {
		r := e.run("-t", "busybox", "sh", "-c", "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; echo err >&2; exit 3")
		e.wantCode(r, 3)
		e.want("stdout", r.stdout, "/dev/pts/0\r\nterminal\r\nerr\r\n")
		e.want("stderr", r.stderr, "") // a terminal has one output

		// /dev/console is the terminal.
		r = e.run("-t", "busybox", "sh", "-c", "test -c /dev/console && echo on the console >/dev/console")
		e.want("stdout", r.stdout, "on the console\r\n")
	})
}

func TestTerminalWithInputAndResize(t *testing.T) {
	eachRuntime(t, func(e *env) {
		s := e.terminal(e.runArgs("-it", "busybox", "probe", "tty")...)
		s.expect("size ")
		s.resizeUntil(41, 133, "size 41 133")
		s.resizeUntil(10, 20, "size 10 20")
		s.send("bye\r")
		e.want("exit code", itoa(s.end()), "0")
	})
}

// The guest's line discipline edits lines, echoes, and makes signals of control characters.
func TestTerminalLineDiscipline(t *testing.T) {
	eachRuntime(t, func(e *env) {
		s := e.terminal(e.runArgs("-it", "busybox", "sh")...)
		s.expect("# ")
		s.send("echo twXo\x7f\x7f\x7fwo | sed s/two/TWO/\r")
		s.expect("TWO\r\n")
		s.expect("# ")
		s.send("sh -c 'echo sleeps; exec sleep 1000'\r")
		s.expect("sleeps\r\n")
		s.send("\x03")
		s.expect("# ")
		s.send("echo status $?\r")
		s.expect("status 130\r\n")
		s.expect("# ")
		s.send("sh -c 'echo reads; exec cat'; echo cat ended\r")
		s.expect("reads\r\n")
		s.send("line\r")
		s.expect("line\r\nline\r\n")
		s.send("\x04")
		s.expect("cat ended\r\n")
		s.send("exit 7\r")
		e.want("exit code", itoa(s.end()), "7")
	})
}

func TestTerminalCarriesMuch(t *testing.T) {
	eachRuntime(t, func(e *env) {
		r := e.run("-t", "busybox", "seq", "100000")
		e.wantCode(r, 0)
		lines := strings.Split(strings.TrimSuffix(r.stdout, "\r\n"), "\r\n")
		if len(lines) != 100000 || lines[0] != "1" || lines[99999] != "100000" {
			e.Errorf("%d lines, want 100000; the last: %q", len(lines), lines[len(lines)-1])
		}
	})
}

// A terminal's data comes from stdin and goes to stdout, wherever they lead; its size, and raw mode, are those of the
// caller's own terminal, and what was typed after it is the next program's.
func TestTerminalRedirected(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("tty-exec", "sleep 1000", nil)
		h.create(b).start()
		x := strings.Join(h.argv("exec", "-t", b.id), " ")
		onTerminal := func(script, typed, want string) {
			h.Helper()
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			s := startOnTerminal(h.T, exec.CommandContext(ctx, "sh", "-c", script), cancel)
			if typed != "" {
				s.expect("ready\r\n")
				s.send(typed)
			}
			h.want("exit code of "+script, itoa(s.end()), "0")
			h.want(script, strings.ReplaceAll(s.text(), "\r\n", "\n"), want)
		}
		// runc leaves newlines alone and sets the size once the program runs. Until then busybox's stty says nothing of a size.
		const ready = `until [ "$(stty size 2>/dev/null)" ]; do :; done; `
		const sized = ready + "stty size; "
		onTerminal(fmt.Sprintf("x=$(%s sh -c '%s tty'); echo \"[$x]\" | tr '\\r' R", x, sized), "", "[24 80\n/dev/pts/0]\n")
		onTerminal(x+" sh -c '"+sized+"' </dev/null", "", "24 80\n")
		onTerminal("echo hi | "+x+" sh -c '"+sized+" read x; echo got $x' 2>/dev/null | tr '\\r' R | sort", "", "24 80\ngot hi\nhi\n")
		onTerminal(x+" true; echo ready; read x; echo got $x", "mine\r", "ready\nmine\ngot mine\n")
		onTerminal(x+" sh -c '"+ready+"stty -echo; echo ready; read x; echo got $x' | cat", "mine\r", "ready\ngot mine\n")
		r := h.cmd("exec", "-t", b.id, "true")
		h.wantCode(r, 255)
		h.wantPart("without any terminal", r.stderr, "open /dev/tty: no such device or address")

		terminal := func(s *specs.Spec) { s.Process.Terminal = true }
		b = h.bundle("tty-run", sized+"tty", terminal)
		onTerminal(strings.Join(h.argv("run", "--bundle", b.dir, b.id), " ")+" </dev/null 2>/dev/null | tr '\\r' R", "", "24 80\n/dev/pts/0\n")
		b = h.bundle("tty-none", "tty", terminal)
		r = h.cmd("run", "--bundle", b.dir, b.id)
		h.wantCode(r, 1)
		h.wantPart("run without any terminal", r.stderr, "open /dev/tty: no such device or address")
	})
}
