package e2e

import (
	"strings"
	"testing"
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
