package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const paused specs.ContainerState = "paused"

// ticker prints its clocks all the time: seconds since boot and of the day.
const ticker = `trap 'echo got TERM; exit 7' TERM; while :; do read up rest </proc/uptime; echo "tick $up $(date +%s)"; sleep 0.1; done`

func TestPauseByHand(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("pause", ticker, nil)
		c := h.create(b)
		h.wantFail("container not paused", "resume", b.id)
		h.must("pause", b.id)
		h.wantStatus(b.id, paused)
		h.wantFail("cannot start a container in the paused state", "start", b.id)
		h.must("resume", b.id)
		h.wantStatus(b.id, specs.StateCreated)
		c.start()
		h.expect(c.out, "tick")

		h.must("pause", b.id)
		h.wantStatus(b.id, paused)
		h.want("pid of the paused one", itoa(h.state(b.id).Pid), itoa(c.pid))
		began := time.Now()
		before := settle(c.out)
		h.wantFail("container not running", "pause", b.id)
		h.wantFail("cannot delete container "+b.id+" that is not stopped: paused", "delete", b.id)
		r := h.cmd("exec", b.id, "true")
		h.wantCode(r, 255)
		h.wantPart("exec", r.stderr, "cannot exec in a paused container (use --ignore-paused to override)")
		waits := startSession(h.T, h.cmdline("exec", "--ignore-paused", b.id, "echo", "after the pause"), func() {})
		h.must("kill", b.id, "0")
		time.Sleep(4 * time.Second) // the pause itself
		h.want("output during the pause", c.out.sofar()[len(before):], "")
		h.want("exec --ignore-paused during the pause", waits.text(), "")
		length := time.Since(began)
		h.must("resume", b.id)
		h.wantStatus(b.id, specs.StateRunning)
		waits.expect("after the pause")
		h.want("exit code of exec --ignore-paused", itoa(waits.end()), "0")
		if err := waitFor("more output", func() bool { return strings.Count(c.out.sofar()[len(before):], "\n") > 3 }); err != nil {
			h.Fatal(err)
		}
		h.wantClocks(before, c.out.sofar()[len(before):], length)

		// A signal waits for the end of the pause.
		h.must("pause", b.id)
		before = settle(c.out)
		h.must("kill", b.id, "TERM")
		time.Sleep(200 * time.Millisecond) // it would have time to arrive
		h.want("output during the pause", c.out.sofar()[len(before):], "")
		h.must("resume", b.id)
		h.want("end", c.end().String(), "exit code 7")
		h.wantPart("output", c.out.wait(), "got TERM\n")
		h.waitStatus(b.id, specs.StateStopped)
		h.wantFail("container not running", "pause", b.id)
		h.wantFail("container not paused", "resume", b.id)
	})
}

// settle returns the output once what was under way before a pause has come.
func settle(c *collected) string {
	for {
		before := c.sofar()
		time.Sleep(300 * time.Millisecond)
		if after := c.sofar(); after == before && strings.HasSuffix(after, "\n") {
			return after
		}
	}
}

// wantClocks compares the last ticks before and after a pause: the day went on meanwhile, and a VM's clock since boot did not.
func (h *hand) wantClocks(before, after string, pause time.Duration) {
	h.Helper()
	last := func(text string) string {
		lines := strings.Split(text[:strings.LastIndex(text, "\n")], "\n")
		return lines[len(lines)-1]
	}
	uptime1, day1 := clocks(h.env, last(before))
	uptime2, day2 := clocks(h.env, last(after))
	least, most := -2.0, 2.0 // runc's pause stops no clock
	if h.rt.isVM() {
		least, most = pause.Seconds()/2, pause.Seconds()+5
	}
	// Not to the second: a tick reads one clock after the other, and the machine may be busy.
	if got := float64(day2-day1) - (uptime2 - uptime1); got < least || got > most {
		h.Errorf("over a pause of %v the clock since boot went from %.2f to %.2f and that of the day from %d to %d", pause, uptime1, uptime2, day1, day2)
	}
}

func clocks(e *env, line string) (uptime float64, day int64) {
	e.Helper()
	if _, err := fmt.Sscanf(line, "tick %g %d", &uptime, &day); err != nil {
		e.Fatalf("tick %q: %v", line, err)
	}
	return uptime, day
}

// A pause does not keep a container from being killed.
func TestKillPaused(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("killpaused", "echo up; sleep 1000", nil)
		c := h.create(b)
		c.start()
		h.expect(c.out, "up\n")
		h.must("pause", b.id)
		h.must("kill", b.id, "KILL")
		c.wantKilled()
		h.waitStatus(b.id, specs.StateStopped)
		h.must("delete", b.id)

		c = h.create(b)
		c.start()
		h.must("pause", b.id)
		h.must("delete", "--force", b.id)
		h.wantFail("container does not exist", "state", b.id)
		c.wantKilled()
	})
}

func TestPauseThroughDocker(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.startReady("ready", "busybox", "probe", "signals")
		e.ok("pause", id)
		e.want("status", e.inspect(id, ".State.Status"), "paused")
		e.wantPart("ps", e.ok("ps", "--format", "{{.Status}}"), "(Paused)")
		r := e.docker("exec", id, "true")
		e.wantCode(r, 1)
		e.wantPart("exec", r.stderr, "is paused, unpause the container before exec")
		e.wantPart("pause again", e.docker("pause", id).stderr, "already paused")
		e.ok("unpause", id)
		e.want("status", e.inspect(id, ".State.Status"), "running")
		e.want("exec after", e.exec(id, "echo", "ok"), "ok")
		e.wantPart("unpause again", e.docker("unpause", id).stderr, "is not paused")

		// stop signals and resumes: the process ends as it likes.
		e.ok("pause", id)
		e.ok("stop", "-t", "60", id)
		e.want("exit code", e.inspect(id, ".State.ExitCode"), "5")
		e.want("logs", e.ok("logs", id), "ready\nSIGTERM")

		e.ok("start", id)
		e.ok("pause", id)
		e.ok("kill", id)
		e.want("wait after kill", e.ok("wait", id), "137")
		e.ok("start", id)
		e.ok("pause", id)
		e.ok("rm", "-f", id)
		e.wantCode(e.docker("inspect", id), 1)
	})
}
