package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A commandLine is words, with _ for a space within one, and how they end.
type commandLine struct {
	args string
	code int
	text string // an expression for the output
}

// wantLines runs lines one after the other, with words replaced.
func (h *hand) wantLines(words *strings.Replacer, lines []commandLine) {
	h.Helper()
	for _, line := range lines {
		args := strings.Fields(words.Replace(line.args))
		for i, arg := range args {
			args[i] = strings.ReplaceAll(arg, "_", " ")
		}
		r := h.cmd(args...)
		want := words.Replace(line.text)
		if r.code != line.code || !regexp.MustCompile(want).MatchString(r.stdout+strings.ReplaceAll(r.stderr, `\"`, `"`)) {
			h.Errorf("%q: want exit code %d and output like %q: %s", line.args, line.code, want, r)
		}
	}
}

// The same command lines end alike: what is not there, too much or too little.
func TestCommandLines(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("lines", "sleep 1000", nil)
		c := h.create(b)
		c.start()
		h.wantLines(strings.NewReplacer("PIDNUMBER", itoa(c.pid), "CTR", b.id, "DIR", b.dir), []commandLine{
			{"", 0, "COMMANDS:"},
			{"--help", 0, "COMMANDS:"},
			{"--version", 0, "version"},
			{"state --help", 0, "USAGE:"},
			{"help", 0, "COMMANDS:"},
			{"h kill", 0, "--all"},
			{"help nosuch", 3, "No help topic for 'nosuch'"},
			{"state help", 1, "container does not exist"}, // an ID
			{"nosuch", 3, "No help topic for 'nosuch'"},
			{"--nosuch list", 1, "flag provided but not defined: -nosuch"},
			{"--log-format xml list", 1, "invalid log-format"},
			{"state --nosuch CTR", 1, "flag provided but not defined: -nosuch"},
			{"exec --nosuch CTR true", 1, "flag provided but not defined: -nosuch"},
			{"create", 1, `"create" requires exactly 1 argument`},
			{"create CTR more", 1, `"create" requires exactly 1 argument`},
			{"run", 1, `"run" requires exactly 1 argument`},
			{"start", 1, `"start" requires exactly 1 argument`},
			{"start CTR more", 1, `"start" requires exactly 1 argument`},
			{"start CTR", 1, "cannot start an already running container"},
			{"state", 1, `"state" requires exactly 1 argument`},
			{"kill", 1, `"kill" requires a minimum of 1 argument`},
			{"kill CTR TERM more", 1, `"kill" requires a maximum of 2 argument`},
			{"kill CTR nosuch", 1, "(?i)signal"},
			{"kill CTR 0", 0, ""},
			{"kill nosuch", 1, "container does not exist"},
			{"delete", 1, `"delete" requires exactly 1 argument`},
			{"delete CTR", 1, "that is not stopped: running"},
			{"delete --force nosuch", 0, "^$"},
			{"exec", 1, `"exec" requires a minimum of 1 argument`},
			{"exec CTR", 255, "args"},
			{"exec --process /nosuch CTR", 255, "no such file"},
			{"exec --user x CTR true", 255, "uid"},
			{"exec --cwd relative CTR true", 255, "(?i)cwd"},
			{"exec --cap CAP_KILL --env A=b --cwd /bin --user 1:2 --additional-gids 3 --no-new-privs CTR sh -c [_$A_=_b_]&&pwd&&id_-G", 0, "^/bin\n2 3\n"},
			{"exec --pid-file=DIR/exec-pid -e A=1 -e A=2 CTR sh -c echo_$A", 0, "^2\n"},
			{"ps", 1, `"ps" requires a minimum of 1 argument`},
			{"ps CTR", 0, `^UID +PID .*\n.* PIDNUMBER `},
			{"ps CTR -o pid,comm", 0, `^ *PID COMMAND\n *PIDNUMBER `},
			{"ps CTR --bogus", 1, "exit status 1: error: unknown gnu long option"},
			{"ps --format json CTR", 0, `^\[(\d+,)*PIDNUMBER(,\d+)*\]`},
			{"ps --format xml CTR", 1, "invalid format"},
			{"list more", 1, `"list" requires exactly 0 argument`},
			{"list", 0, `^ID +PID +STATUS +BUNDLE +CREATED +OWNER\nCTR +PIDNUMBER +running +/`},
			{"list --format json", 0, `"id": ?"CTR"`},
			{"list --format xml", 1, "invalid format"},
			{"list -q", 0, "^CTR\n$"},
			{"pause", 1, `"pause" requires exactly 1 argument`},
			{"resume CTR", 1, "container not paused"},
			{"update", 1, `"update" requires exactly 1 argument`},
			{"update nosuch", 1, "container does not exist"},
			{"events", 1, `"events" requires exactly 1 argument`},
			{"events nosuch", 1, "container does not exist"},
			{"spec more", 1, `"spec" requires exactly 0 argument`},
			{"features more", 1, `"features" requires exactly 0 argument`},
		})
		h.must("kill", b.id, "KILL")
		c.wantKilled()
		h.want("processes of a stopped container", h.must("ps", "--format", "json", b.id), "null\n")
		h.want("table of them", strings.TrimSpace(h.must("ps", b.id, "-o", "pid,comm")), "PID COMMAND")
	})
}

// Whatever flag the runc of this machine has, boxlite has too.
func TestFlagsOfRunc(t *testing.T) {
	eachVM(t, func(e *env) {
		flag := regexp.MustCompile(`(?m)^ +(--[a-z0-9-]+)`)
		help := func(bin string, command ...string) string {
			e.Helper()
			out, err := exec.Command(bin, append(command, "--help")...).CombinedOutput()
			if err != nil {
				e.Fatalf("%s %v --help: %v: %s", bin, command, err, out)
			}
			return string(out)
		}
		for _, command := range []string{
			"", "create", "run", "start", "state", "kill", "delete", "exec", "ps", "list", "pause", "resume", "update", "events", "spec", "features",
		} {
			var ours []string
			for _, m := range flag.FindAllStringSubmatch(help(e.rt.bin, strings.Fields(command)...), -1) {
				ours = append(ours, m[1])
			}
			for _, m := range flag.FindAllStringSubmatch(help("runc", strings.Fields(command)...), -1) {
				if !slices.Contains(ours, m[1]) {
					e.Errorf("%q has no flag %s", command, m[1])
				}
			}
		}
		// Callers ask for the help of these to know whether they are there.
		for _, command := range []string{"checkpoint", "restore"} {
			if exec.Command(e.rt.bin, command, "--help").Run() == nil {
				e.Errorf("%s --help succeeds, as if the command were there", command)
			}
		}
	})
}

// Flags may follow the ID, except where all that follows is another program's.
func TestFlagsBehindTheID(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("behind", "sleep 1000", nil)
		run := startReaper(h.T, reaperJob{Args: h.argv("run", b.id, "-d", "--pid-file="+b.pidFile(), "-b", b.dir), Env: h.vars, Dir: "/"}, [3]*os.File{})
		h.want("run", run.wait(0).String(), "exit code 0")
		h.wantLines(strings.NewReplacer("CTR", b.id), []commandLine{
			{"kill CTR 0 --all", 0, "^$"},
			{"kill CTR -- 0", 0, "^$"},
			{"kill CTR -9", 1, "invalid"}, // no flag, and no signal
			{"kill CTR -- -a", 1, "unknown signal \"-a\""},
			{"state CTR --", 0, `"status": ?"running"`},
			{"state CTR --help", 0, "USAGE:"},
			{"update CTR --pids-limit -1", 0, "^$"},
			{"events CTR --stats", 0, `"type":"stats"`},
			{"exec CTR echo -d --help", 0, "^-d --help\n$"},
			{"ps CTR -f", 0, "^UID"},
			{"list --quiet -f json", 0, "^CTR\n$"},
			{"delete CTR", 1, "that is not stopped: running"},
			{"delete CTR -f", 0, "^$"},
			{"state CTR", 1, "container does not exist"},
		})
		run.wait(h.readPid(b.pidFile()))
	})
}

// A pidfd of the container's process, and of an exec's, is sent to whoever asks.
func TestPidfdSocket(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("pidfd", "sleep 1000", func(s *specs.Spec) { s.Process.Capabilities = nil })
		socket := h.listenConsole()
		c := h.create(b, "--pidfd-socket", socket.path)
		c.start()
		container := socket.receive()
		x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pidfd-socket", socket.path, b.id, "sleep", "1000"), Env: h.vars, Dir: "/"}, [3]*os.File{})
		h.want("exec", x.wait(0).String(), "exit code 0")
		process := socket.receive()
		for _, f := range []interface{ Fd() uintptr }{process, container} {
			h.noErr(unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0))
			h.noErr(awaitEnd(int(f.Fd())))
		}
		c.wantKilled()
	})
}

// awaitEnd waits until the process behind a pidfd has ended. The Go runtime's own
// signals interrupt poll at any time.
func awaitEnd(pidfd int) error {
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(deadline/time.Millisecond))
		if n == 1 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("the process behind the pidfd has not ended within %s", deadline)
}

// --trace gathers the steps of all commands and of all processes in one file.
func TestTrace(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("trace", "sleep 1000", nil)
		path := filepath.Join(b.dir, "trace.json")
		h.flags = append(h.flags, "--trace", path)
		h.create(b).start()
		h.want("exec", h.cmd("exec", b.id, "echo", "hello").stdout, "hello\n")
		raw, err := os.ReadFile(path)
		h.noErr(err)
		var events []struct {
			Name string  `json:"name"`
			Dur  float64 `json:"dur"`
		}
		h.noErr(json.Unmarshal([]byte(strings.TrimSuffix(string(raw), ",\n")+"]"), &events))
		took := map[string]float64{}
		for _, e := range events {
			took[e.Name] = e.Dur
		}
		for _, name := range []string{"create", "create: await the monitor", "await the guest's hello", "take the init", "start", "look at the network again", "exec"} {
			if took[name] <= 0 {
				e.Errorf("no step %q in the trace, or it took no time: %v", name, took)
			}
		}
	})
}
