package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A handAttack goes through the runtime's own command line.
type handAttack struct {
	what string // HOSTILE: NAME[:OPERATION[:ARGUMENT]], see hostileinit
	// protocol is the command whose error must say that the guest broke the protocol. The host has ended the VM by then.
	protocol string
	// ends says that the VM must end without anybody asking for it.
	ends bool
	// last ends the container: kill, with SIGKILL, or delete, with --force.
	last string
	// meanwhile has last come while the commands before it are still under way.
	meanwhile bool
	stdin     bool // without end
	unread    bool // nobody reads its output
}

// Every way to harm the host that a guest has by its control port, and every command.
var handAttacks = []handAttack{
	{what: "none", last: "kill"}, // hostileinit itself is no reason to fail

	// A guest that does not answer, or cannot.
	{what: "silent", last: "kill"},
	{what: "silent", last: "kill", meanwhile: true},
	{what: "silent:create"},
	{what: "silent:start", last: "kill"},
	{what: "silent:wait", last: "kill"},
	{what: "silent:stdio"},
	{what: "frozen", last: "kill"},
	{what: "frozen", last: "delete", meanwhile: true},
	{what: "frozen:create"},
	{what: "frozen:start", last: "delete"},
	{what: "full", last: "kill", stdin: true},
	{what: "full", last: "kill", stdin: true, meanwhile: true},
	{what: "full", last: "delete", stdin: true, meanwhile: true},
	{what: "late:exec:35s", last: "kill"},
	{what: "resets:create"},
	{what: "resets:start"},
	{what: "resets:exec", last: "kill"},

	// What is no session, or not one in which the host asks and the guest answers.
	{what: "floods-pings", ends: true},
	{what: "opens-streams", ends: true},
	{what: "goaway", ends: true},
	{what: "garbage", ends: true},
	{what: "garbage:exec", ends: true, protocol: "exec"},
	{what: "garbage:start", ends: true, protocol: "start"},
	{what: "bad-version", ends: true},
	{what: "bad-type", ends: true},
	{what: "huge-frame", ends: true},
	{what: "overrun", ends: true},
	{what: "overrun:exec", ends: true},
	{what: "early", last: "delete"},
	{what: "hasty", last: "kill"},

	// Replies that are none.
	{what: "huge:create", protocol: "create"},
	{what: "huge:exec", protocol: "exec", ends: true},
	{what: "over:stats", protocol: "stats", ends: true},
	{what: "over:start", protocol: "start", ends: true},
	{what: "bound", last: "kill"},
	{what: "wrong-types:create", protocol: "create"},
	{what: "wrong-types:stdio", protocol: "create"},
	{what: "wrong-types:start", protocol: "start", ends: true},
	{what: "wrong-types:exec", protocol: "exec", ends: true},
	{what: "wrong-types:stats", protocol: "stats", ends: true},
	{what: "wrong-types:update", protocol: "update", ends: true},
	{what: "wrong-types:signal", protocol: "kill", ends: true},
	{what: "wrong-types:oom", ends: true}, // asked for once the container is made
	{what: "wrong-types:wait", last: "kill"},

	// Texts.
	{what: "long-text:create"},
	{what: "long-text:start"},
	{what: "long-text:exec", last: "kill"},
	{what: "long-text:exec:command", last: "delete"},
	{what: "long-text", last: "kill"},
	{what: "missing-text:create"},
	{what: "missing-text:create:hook"},
	{what: "missing-text:start:bad-request"},
	{what: "missing-text:exec:bad-request", last: "delete"},
	{what: "missing-text:exec:made-up", last: "kill"},
	{what: "fails:create"},
	{what: "fails:start"},
	{what: "fails:exec", last: "kill"},
	{what: "fails:wait", last: "kill"},

	// Data that nobody has asked for.
	{what: "extra-data", last: "kill"},
	{what: "endless", last: "kill"},
	{what: "endless", last: "kill", unread: true},
	{what: "endless:exec", last: "kill"},

	// The end of PID 1.
	{what: "dies", ends: true},
	{what: "dies:create"},
	{what: "dies:start", ends: true},
}

func (c handAttack) op() string {
	_, rest, _ := strings.Cut(c.what, ":")
	op, _, _ := strings.Cut(rest, ":")
	return op
}

func (c handAttack) behaviour() string {
	name, _, _ := strings.Cut(c.what, ":")
	return name
}

// deaf says that the request in question will not be answered at all.
func (c handAttack) deaf() bool {
	return c.behaviour() == "silent" || c.behaviour() == "frozen"
}

// askBound is for commands that ask this guest. One that gives signs of life is waited for longer.
func (c handAttack) askBound() time.Duration {
	if name := c.behaviour(); name == "silent" || name == "late" {
		return liveAskBound
	}
	return askBound
}

// lasts says that an exec goes on until the container ends, and should.
func (c handAttack) lasts() bool {
	switch c.behaviour() {
	case "endless", "overrun":
		return c.op() == "exec"
	}
	return c.what == "silent:wait"
}

// idle says that nearly all of the attack's time is spent waiting.
func (c handAttack) idle() bool {
	return c.askBound() > askBound || c.what == "frozen" || c.what == "full"
}

func (c handAttack) name(i int) string {
	name := fmt.Sprintf("%02d-%s-%s", i, strings.ReplaceAll(c.what, ":", "-"), c.last)
	if c.meanwhile {
		name += "-meanwhile"
	}
	return strings.TrimSuffix(name, "-")
}

// mostBusy is how many attacks that do not only wait are made at a time.
const mostBusy = 5

// Whatever a guest does at its control port costs the host a bounded time, bounded memory and a bounded text.
func TestHostileByHand(t *testing.T) {
	eachVM(t, func(e *env) {
		e.noErr(hostileParts())
		h := e.byHand()
		h.flags = hostileFlags()
		w := e.watchMonitors()
		busy := make(chan struct{}, mostBusy)
		e.Run("attacks", func(t *testing.T) { // returns when all have ended
			for i, c := range handAttacks {
				t.Run(c.name(i), func(t *testing.T) {
					t.Parallel()
					if !c.idle() {
						busy <- struct{}{}
						defer func() { <-busy }()
					}
					e.attack(t, c.what, w).byHand(h, c, c.name(i))
				})
			}
		})
	})
}

// byHand is the life of one container.
func (a *attack) byHand(all *hand, c handAttack, name string) {
	h := *all
	h.env = a.env
	b := a.hostileBundle(&h, name)
	defer func() {
		h.wantNoProcess(b)
		a.wantNothingLeft(&h, b)
		a.wantMemory(b.id)
	}()

	stdin := [3]*os.File{}
	out, _ := a.gather()
	errs, said := a.gather()
	stdin[1], stdin[2] = out, errs
	if c.stdin {
		stdin[0] = a.pourInto()
	}
	if c.unread {
		_, w, err := os.Pipe() // the reading end goes with this process
		a.noErr(err)
		stdin[1] = w
	}
	began := time.Now()
	create := startReaper(a.T, reaperJob{Args: h.createArgs(b), Env: h.vars, Dir: b.dir}, stdin)
	for _, f := range stdin {
		if f != nil {
			a.noErr(f.Close())
		}
	}
	if op := c.op(); op == "create" || op == "stdio" {
		a.duringCreate(&h, c, b, create, said)
		return
	}
	end, over := create.within(startBound, 0)
	if !over || end.Code != 0 {
		a.Fatalf("%s: create: %v after %v: %s", a.what, end, time.Since(began), said.text())
	}
	pid := h.readPid(b.pidFile())

	if c.op() == "start" {
		a.duringStart(&h, c, b, create, pid)
		return
	}
	if r := a.within(askBound, h.cmdline("start", b.id)); r.code != 0 && c.op() != "oom" {
		a.Fatalf("%s: start: %s", a.what, r)
	}
	if c.op() == "" && c.what != "none" {
		a.wantStruck(&h, c, b)
	}
	if c.ends && c.op() == "" {
		a.wantEnded(&h, c, b, create, pid, "nothing")
	}

	var asking sync.WaitGroup
	if c.meanwhile {
		asking.Go(func() { a.askAll(&h, c, b) })
		time.Sleep(time.Second) // the commands are under way and will be for long
	} else {
		a.askAll(&h, c, b)
	}
	if c.ends && c.op() != "" {
		a.wantEnded(&h, c, b, create, pid, c.op())
	}
	a.end(&h, c, b, create, pid)
	asking.Wait()
}

// wantNothingLeft deletes a container that has ended and has not been deleted, and looks for what is left of it.
func (a *attack) wantNothingLeft(h *hand, b bundle) {
	a.Helper()
	state := filepath.Join(h.root, b.id)
	if _, err := os.Stat(state); err == nil {
		if r := a.within(killBound, h.cmdline("delete", b.id)); r.code != 0 {
			a.Errorf("%s: %s", a.what, r)
		}
		if _, err := os.Stat(state); err == nil {
			a.Errorf("%s: the state directory is left", a.what)
		}
	}
	for _, dir := range taggedCgroups(tag) {
		if filepath.Base(dir) == b.id {
			a.Errorf("%s: the cgroup %s is left", a.what, dir)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), b.id) {
		a.Errorf("%s: mounts are left", a.what)
	}
}

// wantStruck waits until the guest has said on its console that it does what it is here for.
func (a *attack) wantStruck(h *hand, c handAttack, b bundle) {
	a.Helper()
	name := c.behaviour()
	switch {
	case c.op() == "" && (name == "silent" || name == "extra-data" || name == "hasty" || name == "bound" || name == "long-text"):
		return // with the next request
	}
	console := filepath.Join(h.root, b.id, "console.log")
	if !waitUntil(startBound, func() bool {
		text, err := os.ReadFile(console)
		return err == nil && strings.Contains(string(text), "hostileinit: "+name+" strikes")
	}) {
		text, _ := os.ReadFile(console)
		a.Fatalf("%s: has not struck: %s", a.what, clip(string(text)))
	}
}

// duringCreate is for a guest that strikes when the container is to be made: create fails, and nothing is left.
func (a *attack) duringCreate(h *hand, c handAttack, b bundle, create *reaper, said *clipped) {
	a.Helper()
	if c.deaf() {
		a.wantStruck(h, c, b)
		a.killCreate(create) // as a caller does whose patience is over
	}
	bound := startBound
	if c.deaf() {
		bound = killBound
	}
	end, over := create.within(bound, 0)
	switch {
	case !over:
		a.Errorf("%s: create is not over after %v", a.what, bound)
		return
	case end.Code == 0:
		a.Errorf("%s: create succeeded", a.what)
	}
	if !c.deaf() && !said.whole(instantBound) {
		a.Errorf("%s: create: somebody has its stderr open %v after its end", a.what, instantBound)
	}
	r := result{args: h.createArgs(b), code: end.Code, stderr: said.text()}
	a.Logf("%s: create: %v: %.300s", a.what, end, r.stderr)
	if end.Code > 0 && r.stderr == "" {
		a.Errorf("%s: create does not say why it failed", a.what)
	}
	a.wantClean(r)
	a.wantNotTheCommands(r)
	if c.protocol == "create" && !strings.Contains(r.stderr, "protocol") {
		a.Errorf("%s: create does not say that the protocol was broken: %s", a.what, clip(r.stderr))
	}
	if c.deaf() {
		a.within(killBound, h.cmdline("delete", "--force", b.id))
	}
	if _, err := os.Stat(filepath.Join(h.root, b.id)); err == nil {
		a.Errorf("%s: the state directory is left", a.what)
	}
}

// killCreate kills the command that a reaper has started.
func (a *attack) killCreate(create *reaper) {
	a.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", create.cmd.Process.Pid)) // of each thread
	a.noErr(err)
	for _, task := range tasks {
		children, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for pid := range strings.FieldsSeq(string(children)) {
			if line, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.Contains(string(line), "\x00create\x00") {
				a.noErr(sh("kill -KILL " + pid))
				return
			}
		}
	}
	a.Errorf("%s: there is no create to kill", a.what)
}

// duringStart is for a guest that strikes when the container is to be started: that fails, and the container has ended.
func (a *attack) duringStart(h *hand, c handAttack, b bundle, create *reaper, pid int) {
	a.Helper()
	var r result
	done := make(chan struct{})
	go func() {
		defer close(done)
		r = a.within(askBound, h.cmdline("start", b.id))
	}()
	if c.deaf() {
		a.wantStruck(h, c, b)
		a.end(h, c, b, create, pid)
	}
	<-done
	if r.code == 0 {
		a.Errorf("%s: start succeeded", a.what)
	}
	a.Logf("%s: start: exit code %d after %v: %.300s", a.what, r.code, r.took, r.stderr)
	a.wantNotTheCommands(r)
	if c.protocol == "start" && !strings.Contains(r.stderr, "protocol") {
		a.Errorf("%s: start does not say that the protocol was broken: %s", a.what, clip(r.stderr))
	}
	if !c.deaf() {
		a.wantEnded(h, c, b, create, pid, "start")
		c.last = "delete"
		a.end(h, c, b, create, pid)
	}
}

// wantEnded waits until the host has ended the VM and all that belongs to it.
func (a *attack) wantEnded(h *hand, c handAttack, b bundle, create *reaper, pid int, after string) {
	a.Helper()
	began := time.Now()
	if end, over := create.within(killBound, pid); !over {
		a.Errorf("%s: the monitor has not ended by itself %v after %s", a.what, killBound, after)
	} else {
		a.Logf("%s: the monitor ended within %v of %s: %v", a.what, time.Since(began).Round(time.Millisecond), after, end)
		h.wantNoProcess(b)
		h.waitStatus(b.id, specs.StateStopped)
	}
}

// askAll asks for everything that does not end the container: first for what shall find the protocol broken, as any request may,
// and then for the rest at once.
func (a *attack) askAll(h *hand, c handAttack, b bundle) {
	execIn := func(args ...string) *exec.Cmd { return h.cmdline(append([]string{"exec"}, args...)...) }
	commands := map[string]struct {
		bound time.Duration
		*exec.Cmd
	}{
		"exec":       {c.askBound(), execIn(b.id, "true")},
		"exec again": {c.askBound(), execIn(b.id, "true")},
		"stats":      {c.askBound(), h.cmdline("events", "--stats", b.id)},
		"update":     {c.askBound(), h.cmdline("update", "--pids-limit", "50", b.id)},
		"kill":       {c.askBound(), h.cmdline("kill", b.id, "TERM")},
		"ps":         {instantBound, h.cmdline("ps", b.id)},
		"state":      {instantBound, h.cmdline("state", b.id)},
	}
	if c.lasts() {
		delete(commands, "exec")
		delete(commands, "exec again")
		x := a.background(execIn(b.id, "true"))
		a.Cleanup(func() { a.wantOver("exec", x) })
		a.wantStruck(h, c, b)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	results := map[string]result{}
	if first, ok := commands[c.protocol]; ok {
		results[c.protocol] = a.within(first.bound, first.Cmd)
		delete(commands, c.protocol)
	}
	for name, cmd := range commands {
		all.Go(func() {
			r := a.within(cmd.bound, cmd.Cmd)
			mu.Lock()
			defer mu.Unlock()
			results[name] = r
		})
	}
	if !c.lasts() {
		all.Go(func() {
			r := a.onTerminal(c.askBound(), execIn("-t", b.id, "true"))
			mu.Lock()
			defer mu.Unlock()
			results["exec -t"] = r
		})
	}
	all.Wait()
	for name, r := range results {
		a.Logf("%s: %s: exit code %d after %.2f s: %.200s", a.what, name, r.code, r.took.Seconds(), r.stderr)
		if !strings.HasSuffix(c.what, ":command") {
			a.wantNotTheCommands(r)
		}
		if c.what == "none" && r.code != 0 {
			a.Errorf("an honest guest: %s", r)
		}
	}
	if c.protocol != "" {
		if said := results[c.protocol].stderr; !strings.Contains(said, "protocol") {
			a.Errorf("%s: %s does not say that the protocol was broken: %s", a.what, c.protocol, clip(said))
		}
	}
	if c.meanwhile {
		return
	}
	switch {
	case c.behaviour() == "late":
		a.wantLateReply(h, b)
	case c.what == "extra-data":
		a.askOften(h, b)
	}
	a.within(pauseBound, h.cmdline("pause", b.id))
	a.within(pauseBound, h.cmdline("resume", b.id))
}

const (
	// instantBound is for what asks nobody.
	instantBound = 5 * time.Second
	// pauseBound is for pause and resume, which wait for requests that are under way first.
	pauseBound = 20 * time.Second
)

// onTerminal is within for a command that has a terminal, and no other stdout and stderr.
func (a *attack) onTerminal(bound time.Duration, cmd *exec.Cmd) result {
	a.Helper()
	began := time.Now()
	s := startOnTerminal(a.T, cmd, func() { _ = cmd.Process.Kill() })
	r := result{args: cmd.Args, code: -1}
	select {
	case <-s.ended:
		r.code = s.code
	case <-time.After(bound + slack):
		a.Errorf("%s: exec -t: not over after %v", a.what, bound+slack)
	}
	r.took, r.stdout = time.Since(began), s.text()
	return r
}

// background starts a command whose output is thrown away. The channel is closed at its end.
func (a *attack) background(cmd *exec.Cmd) <-chan struct{} {
	a.Helper()
	cmd.Stdout = new(clipped)
	a.noErr(cmd.Start())
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = cmd.Wait() // whatever it says
	}()
	a.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended by then, or was a failure
	return over
}

func (a *attack) wantOver(what string, over <-chan struct{}) {
	a.Helper()
	select {
	case <-over:
	case <-time.After(killBound):
		a.Errorf("%s: %s goes on %v after the end of its container", a.what, what, killBound)
	}
}

// wantLateReply waits for a reply that comes when nobody waits for it any more. The container is as it was, or has ended.
func (a *attack) wantLateReply(h *hand, b bundle) {
	a.Helper()
	time.Sleep(8 * time.Second) // the guest answers after 35 s, the command was given up after 30
	r := a.within(askBound, h.cmdline("events", "--stats", b.id))
	if status := h.state(b.id).Status; r.code != 0 && status != specs.StateStopped {
		a.Errorf("%s: after the reply the container is %s and does not answer: %s", a.what, status, r)
	}
}

// askOften gives the guest many replies to add to.
func (a *attack) askOften(h *hand, b bundle) {
	a.Helper()
	var all sync.WaitGroup
	giveUp := time.Now().Add(15 * time.Second)
	for range 2 {
		all.Go(func() {
			for time.Now().Before(giveUp) && !a.Failed() {
				a.within(askBound, h.cmdline("events", "--stats", b.id))
			}
		})
	}
	all.Wait()
}

// end ends the container as the attack says. It has ended within the bound, whether it had before or not.
func (a *attack) end(h *hand, c handAttack, b bundle, create *reaper, pid int) {
	a.Helper()
	began := time.Now()
	switch c.last {
	case "delete":
		if r := a.within(killBound, h.cmdline("delete", "--force", b.id)); r.code != 0 {
			a.Errorf("%s: %s", a.what, r)
		}
	default:
		r := a.within(killBound, h.cmdline("kill", b.id, "KILL"))
		if r.code != 0 && !strings.Contains(r.stderr, "container not running") {
			a.Errorf("%s: %s", a.what, r)
		}
	}
	if end, over := create.within(killBound-time.Since(began), pid); !over {
		a.Errorf("%s: the container goes on %v after %s", a.what, time.Since(began), c.last)
	} else {
		a.Logf("%s: %s: %v after %v", a.what, c.last, end, time.Since(began).Round(time.Millisecond))
	}
	h.wantNoProcess(b)
	if c.last != "delete" {
		h.waitStatus(b.id, specs.StateStopped)
	}
}
