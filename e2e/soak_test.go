package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// soakOperations is how many operations TestSoak makes; E2E_SOAK asks for more (make soak: 200).
const soakOperations = 20

// Many operations on a few containers, in an order that a seed decides, each with its result. A VM's guest is hostile in some
// of them. What they leave behind is found after the case, as after every one.
func TestSoak(t *testing.T) {
	operations, seed := soakOperations, uint64(time.Now().UnixNano())
	for name, to := range map[string]func(string) error{
		"E2E_SOAK":      func(s string) (err error) { operations, err = strconv.Atoi(s); return err },
		"E2E_SOAK_SEED": func(s string) (err error) { seed, err = strconv.ParseUint(s, 10, 64); return err },
	} {
		if text := os.Getenv(name); text != "" {
			if err := to(text); err != nil {
				t.Fatalf("%s=%s: %v", name, text, err)
			}
		}
	}
	t.Logf("%d operations, E2E_SOAK_SEED=%d", operations, seed)
	eachRuntime(t, func(e *env) {
		s := &soak{env: e, rand: rand.New(rand.NewPCG(seed, 0)), paused: map[string]bool{}}
		if e.rt.isVM() {
			e.noErr(hostileParts())
			s.hostile = e.byHand()
			s.hostile.flags = hostileFlags()
			s.watch = e.watchMonitors()
		}
		for i := range operations {
			began := time.Now()
			what := s.step(i)
			if e.Failed() {
				e.Fatalf("operation %d: %s", i, what)
			}
			if operations > soakOperations {
				e.Logf("%d: %s: %.1f s", i, what, time.Since(began).Seconds())
			}
		}
		if s.watch == nil {
			return
		}
		id, kib := s.watch.most()
		e.Logf("the largest process of boxlite's had %d MiB, that of %s", kib>>10, id)
		if kib > monitorBound {
			e.Errorf("a process of boxlite's had %d MiB, want %d at most", kib>>10, monitorBound>>10)
		}
	})
}

type soak struct {
	*env
	rand    *rand.Rand
	running []string // names of the containers
	paused  map[string]bool
	hostile *hand  // makes VMs whose guest is hostile; nil where there are no VMs
	watch   *watch // likewise
}

// mostRunning is how many containers a soak has at a time.
const mostRunning = 3

// step does one operation and says which.
func (s *soak) step(i int) string {
	if len(s.running) == 0 || len(s.running) < mostRunning && s.rand.IntN(4) == 0 {
		name := fmt.Sprintf("soak%d", i)
		s.startReady("ready\n", "--name", name, "busybox", "probe", "signals")
		s.running = append(s.running, name)
		return "start " + name
	}
	if s.hostile != nil && s.rand.IntN(5) == 0 {
		c := handAttacks[s.rand.IntN(len(handAttacks))]
		name := c.name(i)
		s.attack(s.T, c.what, s.watch).byHand(s.hostile, c, name)
		return "attack " + name
	}
	name := s.running[s.rand.IntN(len(s.running))]
	switch n := s.rand.IntN(10); {
	case n < 2:
		code := s.rand.IntN(100)
		s.wantCode(s.run("busybox", "sh", "-c", fmt.Sprintf("exit %d", code)), code)
		return "run"
	case n < 3:
		s.wantCode(s.run("busybox", "no-such-command"), 127)
		return "run of a missing command"
	case n < 7:
		if s.paused[name] {
			s.ok("unpause", name)
			s.paused[name] = false
			return "unpause " + name
		}
		if s.rand.IntN(3) == 0 {
			s.ok("pause", name)
			s.paused[name] = true
			return "pause " + name
		}
		s.want("exec", s.exec(name, "echo", name), name)
		return "exec " + name
	case n < 8:
		s.ok("kill", name)
		s.want("wait", s.ok("wait", name), "137")
		s.ok("rm", name)
		s.forget(name)
		return "kill, wait, rm " + name
	case n < 9:
		s.ok("stop", "-t", "60", name)
		s.want("exit code", s.inspect(name, ".State.ExitCode"), "5")
		s.ok("rm", name)
		s.forget(name)
		return "stop, rm " + name
	default:
		s.ok("rm", "-f", name)
		s.forget(name)
		return "rm -f " + name
	}
}

func (s *soak) forget(name string) {
	delete(s.paused, name)
	for i, r := range s.running {
		if r == name {
			s.running = append(s.running[:i], s.running[i+1:]...)
			return
		}
	}
}
