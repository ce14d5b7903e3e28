package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What a guest may cost the host, whatever it does.
const (
	// killBound is for what ends a container: kill with SIGKILL, delete --force.
	killBound = 10 * time.Second
	// askBound is for what asks a guest that is not heard of any more, liveAskBound for one that is, and does not answer.
	askBound     = 15 * time.Second
	liveAskBound = 31 * time.Second
	// monitorBound is the most memory that a process of boxlite's in the container's cgroup ever has, in KiB.
	monitorBound = 64 << 10
	// textBound is the longest that a command may say on stderr: 2 KiB of the guest's, and what it is put into.
	textBound = 2560
	// startBound is for create and start of a guest that has not struck yet: two VMs at a time, emulated.
	startBound = 60 * time.Second
	// slack is what starting a command takes, beside others on a machine that emulates.
	slack = 2 * time.Second
)

// hostileDir holds the parts of VMs whose PID 1 is hostileinit, hostileTemplates those that have booted.
func hostileDir() string       { return filepath.Join(workDir, "hostile") }
func hostileTemplates() string { return filepath.Join(workDir, "hostile-templates") }

// hostileFlags are boxlite's for such a VM.
func hostileFlags() []string {
	return []string{"--parts", hostileDir(), "--template-dir", hostileTemplates()}
}

// hostileParts makes the directory, once. QEMU follows no links out of it.
var hostileParts = sync.OnceValue(func() error {
	dir := hostileDir()
	for _, rt := range runtimes {
		if !rt.isVM() {
			continue
		}
		parts := filepath.Dir(rt.bin)
		if _, err := os.Stat(filepath.Join(parts, "vmlinux-lean")); err != nil {
			parts = filepath.Join(filepath.Dir(parts), "lib", "boxlite") // an installed one
		}
		return sh(fmt.Sprintf(`mkdir -p %[1]s && cp %[2]s/vmlinux-* %[1]s
cd .. && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o %[1]s/hostileinit ./e2e/hostileinit
go run ./initramfs -o %[1]s/initramfs.cpio %[1]s/hostileinit`, dir, parts))
	}
	return fmt.Errorf("no runtime with a VM is selected")
})

// hostileMemory limits each such container: where the bound does not hold, the kernel ends the monitor and not the machine.
const hostileMemory int64 = 256 << 20

// A watch knows the most memory that any process of boxlite has had in each container's cgroup.
type watch struct {
	bin  string
	stop chan struct{}
	done chan struct{}

	mu   sync.Mutex
	high map[string]int // KiB, by the cgroup's name
}

// watchMonitors looks until the case ends. No event tells of a process's memory.
func (e *env) watchMonitors() *watch {
	w := &watch{bin: e.rt.bin, stop: make(chan struct{}), done: make(chan struct{}), high: map[string]int{}}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-w.stop:
				return
			case <-tick.C:
				w.look()
			}
		}
	}()
	e.Cleanup(func() { close(w.stop); <-w.done })
	return w
}

func (w *watch) look() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if exe, err := os.Readlink(dir + "/exe"); err != nil || exe != w.bin {
			continue
		}
		cgroup, err := os.ReadFile(dir + "/cgroup")
		if err != nil {
			continue
		}
		_, path, _ := strings.Cut(string(cgroup), "/"+tag+"/")
		id, _, _ := strings.Cut(path, "\n")
		if id == "" {
			continue // a command
		}
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		_, text, _ := strings.Cut(string(status), "VmHWM:")
		text, _, _ = strings.Cut(text, "kB")
		kib, _ := strconv.Atoi(strings.TrimSpace(text)) // none in one that is about to end
		w.mu.Lock()
		w.high[id] = max(w.high[id], kib)
		w.mu.Unlock()
	}
}

// of is the most that a container's had, in KiB; zero if it was never seen.
func (w *watch) of(id string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.high[id]
}

// most is the largest of all, and whose.
func (w *watch) most() (id string, kib int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(w.high)) {
		if w.high[name] > kib {
			id, kib = name, w.high[name]
		}
	}
	return id, kib
}

// An attack is a container with a hostile guest and what is done with it.
type attack struct {
	*env
	what  string // HOSTILE
	watch *watch
}

// attack fails a test of its own.
func (e *env) attack(t *testing.T, what string, w *watch) *attack {
	child := *e
	child.T = t
	return &attack{env: &child, what: what, watch: w}
}

// within runs a command that may take that long, and says how it ended. One that takes longer is a failure and is ended.
func (a *attack) within(bound time.Duration, cmd *exec.Cmd) result {
	a.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound+slack)
	defer cancel()
	limited := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	limited.Env, limited.Dir, limited.Stdin = cmd.Env, cmd.Dir, cmd.Stdin
	limited.Stdout, limited.Stderr = new(clipped), new(clipped)
	limited.WaitDelay = time.Second // a monitor may hold the output of an exec that was ended
	began := time.Now()
	err := limited.Run()
	r := result{args: cmd.Args, took: time.Since(began), stdout: limited.Stdout.(*clipped).text(), stderr: limited.Stderr.(*clipped).text()}
	r.code = limited.ProcessState.ExitCode()
	if ctx.Err() != nil {
		r.code = -1
		a.Errorf("%s: %s: not over after %v: %s", a.what, command(r), bound+slack, clip(r.stderr))
	} else if r.code < 0 {
		a.Errorf("%s: %s: %v", a.what, command(r), err)
	}
	a.wantClean(r)
	return r
}

// command is the part of a command line that says which it is.
func command(r result) string {
	args := slices.DeleteFunc(slices.Clone(r.args), func(arg string) bool { return strings.HasPrefix(arg, "--") || strings.HasPrefix(arg, "/") })
	return clip(strings.Join(args, " "))
}

// clipped keeps the beginning of what is written to it.
type clipped struct {
	mu   sync.Mutex
	kept []byte
	over chan struct{} // of gather
}

func (c *clipped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, p[:min(len(p), 1<<20-len(c.kept))]...)
	return len(p), nil
}

func (c *clipped) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.kept)
}

// whole waits until nobody can write any more.
func (c *clipped) whole(bound time.Duration) bool {
	select {
	case <-c.over:
		return true
	case <-time.After(bound):
		return false
	}
}

// wantClean looks at what a command says on stderr: no more than it may, and nothing that moves a terminal or passes for
// something else.
func (a *attack) wantClean(r result) {
	a.Helper()
	if len(r.stderr) > textBound {
		a.Errorf("%s: %s: %d bytes on stderr, want %d at most", a.what, command(r), len(r.stderr), textBound)
	}
	for line := range strings.Lines(r.stderr) {
		for _, c := range strings.TrimRight(line, "\r\n") {
			if unicode.IsControl(c) || unicode.Is(unicode.Cf, c) || c == unicode.ReplacementChar {
				a.Errorf("%s: %s: %q on stderr: %.300q", a.what, command(r), c, line)
				return
			}
		}
		if strings.HasPrefix(line, `time="2026-01-01T00:00:00Z"`) {
			a.Errorf("%s: %s: a line of the guest's passes for one of the log: %.300q", a.what, command(r), line)
		}
	}
}

// wantNotTheCommands is for a command that failed with a text of the guest's that runc would have used of the container's command.
func (a *attack) wantNotTheCommands(r result) {
	a.Helper()
	if r.code == 126 || r.code == 127 {
		a.Errorf("%s: exit code %d of a text that is the guest's: %s", a.what, r.code, r)
	}
}

// wantMemory looks at the monitor's memory up to now.
func (a *attack) wantMemory(id string) {
	a.Helper()
	kib := a.watch.of(id)
	switch {
	case kib == 0:
		a.Errorf("%s: nobody has seen the monitor", a.what)
	case kib > monitorBound:
		a.Errorf("%s: the monitor had %d MiB, want %d at most", a.what, kib>>10, monitorBound>>10)
	}
	a.Logf("%s: the monitor had %d MiB at most", a.what, kib>>10)
}

// waitUntil polls for as long as the bound is.
func waitUntil(bound time.Duration, cond func() bool) bool {
	for giveUp := time.Now().Add(bound); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(giveUp) {
			return false
		}
	}
	return true
}

// hostileBundle is a bundle whose guest does what the attack says.
func (a *attack) hostileBundle(h *hand, name string) bundle {
	a.Helper()
	return h.bundle("hostile-"+name, "sleep 1000", func(s *specs.Spec) {
		s.Process.Env = append(s.Process.Env, "HOSTILE="+a.what)
		limit := hostileMemory
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	})
}

// zeros is a stdin without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// pourInto writes to a pipe for as long as somebody reads it, and returns the reading end.
func (a *attack) pourInto() *os.File {
	a.Helper()
	r, w, err := os.Pipe()
	a.noErr(err)
	go func() {
		defer w.Close()
		_, _ = io.Copy(w, zeros{}) // until nobody reads any more
	}()
	return r
}

// gather returns the writing end of a pipe, and what came of it so far, read as it comes.
func (a *attack) gather() (*os.File, *clipped) {
	a.Helper()
	r, w, err := os.Pipe()
	a.noErr(err)
	c := &clipped{over: make(chan struct{})}
	go func() {
		defer close(c.over)
		defer r.Close()
		_, _ = io.Copy(c, r)
	}()
	return w, c
}

// within waits for a process's end, zero standing for the command's, for as long as the bound is.
func (r *reaper) within(bound time.Duration, pid int) (reaped, bool) {
	for giveUp := time.After(bound); ; {
		if end, ok := r.seen[pid]; ok {
			return end, true
		}
		select {
		case end, ok := <-r.ends:
			if !ok {
				return reaped{}, false
			}
			r.seen[end.Pid] = end
		case <-giveUp:
			return reaped{}, false
		}
	}
}

// A guest that has as many clients of a host's socket as it likes, and takes for root whom it likes.
func TestHostileSocketClients(t *testing.T) {
	eachVM(t, func(e *env) {
		e.noErr(hostileParts())
		server := e.hostServer(filepath.Join(e.diskDir(), "server.sock"), 0o666)
		w := e.watchMonitors()
		h := e.byHand()
		h.flags = hostileFlags()
		bundle := func(a *attack, name string) bundle {
			return h.bundle("hostile-"+name, "sleep 1000", func(s *specs.Spec) {
				s.Process.Env = append(s.Process.Env, "HOSTILE="+a.what)
				s.Process.User = specs.User{UID: 1000, GID: 77}
				limit := hostileMemory
				s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
				bindSocket(server.path)(s)
			})
		}
		a := e.attack(e.T, "clients:accept", w)
		b := bundle(a, "clients")
		c := h.create(b)
		c.start()
		h.noErr(waitFor("256 clients", func() bool { return server.clients() == 256 }))
		h.want("peer of the server", server.lastPeer(), "1000:77")
		a.within(killBound, h.cmdline("delete", "--force", b.id))
		h.want("clients of all", itoa(server.clients()), "0")
		a.wantMemory(b.id)
		c.out.wait()

		a = e.attack(e.T, "clients-pour:accept", w)
		b = bundle(a, "clients-pour")
		c = h.create(b)
		h.wantPart("end", c.end().String(), "exit code 255")
		a.wantMemory(b.id)
		log, err := os.ReadFile(filepath.Join("/run/byhand", b.id, "monitor.log"))
		h.noErr(err)
		h.wantPart("log", string(log), "broke the control protocol")
		h.must("delete", "--force", b.id)
		c.out.wait()
	})
}
