package e2e

import (
	"regexp"
	"strings"
	"testing"
)

func TestExitCodes(t *testing.T) {
	eachRuntime(t, func(e *env) {
		for script, code := range map[string]int{"exit 0": 0, "exit 1": 1, "exit 42": 42, "exit 255": 255} {
			e.wantCode(e.run("busybox", "sh", "-c", script), code)
		}
	})
}

// The shim learns "not found" and "not executable" from the words of the failing create.
func TestExitCodeOfMissingCommand(t *testing.T) {
	for _, c := range []struct {
		command string
		code    int
		text    string
	}{
		{"nosuch", 127, `exec: "nosuch": executable file not found in \$PATH`},
		{"/bin/nosuch", 127, `exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory`},
		{"/etc", 126, `exec: "/etc": (permission denied|is a directory)`}, // runc 1.1.5; 1.1.15
		{"/etc/not-executable", 126, `exec: "/etc/not-executable": permission denied`},
	} {
		t.Run(strings.ReplaceAll(c.command, "/", ","), func(t *testing.T) {
			eachRuntime(t, func(e *env) {
				r := e.run("busybox", c.command)
				e.wantCode(r, c.code)
				if !regexp.MustCompile(c.text).MatchString(r.stderr) {
					e.Errorf("stderr = %q, want a match of %s", r.stderr, c.text)
				}
			})
		})
	}
}

// A file that fails only at execve is not an error of create.
func TestBadFormatIsTheContainersError(t *testing.T) {
	eachRuntime(t, func(e *env) {
		r := e.run("busybox", "/bin/bad-format")
		if r.code != 1 && r.code != 255 {
			e.Errorf("exit code %d, want 1 or 255: %s", r.code, r)
		}
		e.wantPart("stderr", r.stderr, "exec format error")
	})
}

func TestKilledBySignal(t *testing.T) {
	eachRuntime(t, func(e *env) {
		// sleep leaves TERM at its default, but as init of a pid namespace does not die of it; KILL always works.
		id := e.start("busybox", "sleep", "1000")
		e.ok("kill", id)
		e.want("wait after KILL", e.ok("wait", id), "137")
		e.want("status", e.inspect(id, ".State.Status"), "exited")
		e.want("exit code", e.inspect(id, ".State.ExitCode"), "137")

		e.wantCode(e.run("busybox", "sh", "-c", `sh -c 'kill -SEGV $$'; exit $?`), 139)
	})
}
