package libvm

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/fakevm"
	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
)

// A container's life from create to delete, with all that a caller sees of it.
func TestLifecycle(t *testing.T) {
	h := newHost(t)
	h.Trace = trace.New(time.Now())
	io1 := newStreams(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	c, err := h.Create("life", CreateOptions{Bundle: h.bundle, Spec: h.spec("cat"), Stdio: io1.Stdio, PidFile: pidFile})
	if err != nil {
		t.Fatal(err)
	}
	io1.letGo()
	defer func() { _ = c.Delete(true) }() // for a test that ends early
	wantStatus(t, c, specs.StateCreated)
	if pid, err := os.ReadFile(pidFile); err != nil || string(pid) != strconv.Itoa(c.Pid) {
		t.Errorf("pid file %q, %v, want %d", pid, err, c.Pid)
	}
	if _, err := h.Create("life", CreateOptions{Bundle: h.bundle, Spec: h.spec("cat")}); !errors.Is(err, ErrExist) {
		t.Errorf("a second one of the name: %v, want %v", err, ErrExist)
	}
	if _, err := os.Stat(filepath.Join(h.Root, "life", birthFile)); err == nil {
		t.Error("the birth file is there still")
	}
	if steps := h.Trace.Take(); !slices.ContainsFunc(steps, func(s trace.Span) bool { return s.Name == "await the guest's hello" }) {
		t.Errorf("the monitor's steps are not among %v", steps)
	}

	// Another process's view of it.
	if c, err = h.Load("life"); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, c, specs.StateRunning)
	if err := c.Start(); !errors.Is(err, ErrRunning) {
		t.Errorf("a second start: %v, want %v", err, ErrRunning)
	}
	if err := c.Delete(false); err == nil || !strings.Contains(err.Error(), "that is not stopped: running") {
		t.Errorf("delete of one that runs: %v", err)
	}
	if _, err := io1.in.WriteString("to and fro\n"); err != nil {
		t.Fatal(err)
	}
	wantLine(t, io1.out, "to and fro")
	if err := c.Signal(int(unix.SIGUSR1), false); err != nil {
		t.Errorf("signal: %v", err)
	}
	wantLine(t, io1.out, "signal 10")
	if err := unix.Kill(c.Pid, unix.SIGUSR2); err != nil { // as a caller does that knows the pid
		t.Fatal(err)
	}
	wantLine(t, io1.out, "signal 12")

	if err := c.Pause(); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, c, StatePaused)
	if _, err := c.Exec(ExecOptions{Process: &specs.Process{Args: []string{"exit", "0"}}, Stdio: newStreams(t).Stdio}); !errors.Is(err, ErrPaused) {
		t.Errorf("exec in a pause: %v, want %v", err, ErrPaused)
	}
	if err := c.Update(&specs.LinuxResources{}); err == nil {
		t.Error("a paused container was updated")
	}
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := c.Resume(); !errors.Is(err, ErrNotPaused) {
		t.Errorf("a second resume: %v, want %v", err, ErrNotPaused)
	}
	all, err := h.List()
	if err != nil || len(all) != 1 || all[0].OCIState().Pid != c.Pid || all[0].OCIState().Status != specs.StateRunning {
		t.Errorf("List = %v, %v", all, err)
	}

	if err := io1.in.Close(); err != nil { // the end of cat
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(io1.out); err != nil || len(rest) > 0 {
		t.Errorf("left in stdout: %q, %v", rest, err)
	}
	eventually(t, "the container stops", func() bool { return c.Status() == specs.StateStopped })
	if err := c.Start(); !errors.Is(err, ErrStopped) {
		t.Errorf("start of one that has stopped: %v, want %v", err, ErrStopped)
	}
	if err := c.Signal(int(unix.SIGTERM), false); !errors.Is(err, ErrNotRunning) {
		t.Errorf("signal to one that has stopped: %v, want %v", err, ErrNotRunning)
	}
	if err := c.Signal(int(unix.SIGKILL), true); err != nil {
		t.Errorf("kill --all of one that has stopped: %v", err)
	}
	for what, err := range map[string]error{"pause": c.Pause(), "update": c.Update(&specs.LinuxResources{}), "stats": second(c.Stats())} {
		if !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s of one that has stopped: %v, want %v", what, err, ErrNotRunning)
		}
	}
	if err := c.Delete(false); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(h.Root); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	if _, err := h.Load("life"); !errors.Is(err, ErrNotExist) {
		t.Errorf("Load of one that was deleted: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// The status of the container init is the monitor's, and so Wait's.
func TestWait(t *testing.T) {
	h := newHost(t)
	h.NoCgroup = true
	for name, c := range map[string]struct {
		args   []string
		signal unix.Signal
		want   int
	}{
		"exit":    {args: []string{"exit", "42"}, want: 42},
		"SIGTERM": {args: []string{"wait"}, signal: unix.SIGTERM, want: 128 + 15},
		"SIGKILL": {args: []string{"wait"}, signal: unix.SIGKILL, want: 128 + 9},
		"oom":     {args: []string{"oom"}, want: 128 + 9},
	} {
		t.Run(name, func(t *testing.T) {
			ctr := h.create("wait-"+name, h.spec(c.args...), newStreams(t))
			if err := ctr.Start(); err != nil {
				t.Fatal(err)
			}
			if c.signal != 0 {
				if err := ctr.Signal(int(c.signal), false); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := ctr.Wait(); err != nil || got != c.want {
				t.Errorf("Wait = %d, %v, want %d", got, err, c.want)
			}
		})
	}
}

// The VM's end under a container is its end, with a status of its own, and start says
// what was lost.
func TestVMLost(t *testing.T) {
	h := newHost(t)
	h.NoCgroup = true
	c := h.create("lost", h.spec("wait"), newStreams(t))
	children, err := childrenOf(c.Pid)
	if err != nil || len(children) != 2 {
		t.Fatalf("the monitor's children are %v, %v, want QEMU and virtiofsd", children, err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(children[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, err := c.Wait(); err != nil || status != exitVMLost {
		t.Errorf("Wait = %d, %v, want %d", status, err, exitVMLost)
	}
}

// A create that fails leaves nothing, and says what was wrong.
func TestCreateFails(t *testing.T) {
	h := newHost(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	for name, c := range map[string]struct {
		fault   fakevm.Fault
		change  func(*specs.Spec, *CreateOptions)
		want    string
		started bool
	}{
		"command":       {change: func(s *specs.Spec, _ *CreateOptions) { s.Process.Args = []string{"nonesuch"} }, want: `runc create failed: unable to start container process: exec: "nonesuch": executable file not found in $PATH`},
		"console":       {change: func(s *specs.Spec, _ *CreateOptions) { s.Process.Terminal = true }, want: "cannot allocate tty"},
		"no console":    {change: func(_ *specs.Spec, o *CreateOptions) { o.ConsoleSocket = "/none" }, want: "cannot use console socket"},
		"QEMU":          {fault: fakevm.NoGreeting, want: "fake QEMU: no greeting"},
		"share":         {fault: fakevm.Refuse("device_add"), want: "qmp device_add: refused"},
		"annotation":    {change: func(s *specs.Spec, _ *CreateOptions) { s.Annotations = map[string]string{"boxlite.template": "maybe"} }, want: "auto or off"},
		"namespace":     {change: func(s *specs.Spec, _ *CreateOptions) { s.Linux.Namespaces[1].Path = "/proc/self/ns/uts" }, want: "a namespace of another type"},
		"pid file":      {change: func(_ *specs.Spec, o *CreateOptions) { o.PidFile = "/none/pid" }, want: "pid file:"},
		"createRuntime": {change: hook(func(h *specs.Hooks) *[]specs.Hook { return &h.CreateRuntime }), want: "createRuntime hook #0"},
		"prestart": {change: hook(func(h *specs.Hooks) *[]specs.Hook {
			//lint:ignore SA1019 what docker uses
			return &h.Prestart
		}), want: "prestart hook #0"},
		"createContainer": {change: hook(func(h *specs.Hooks) *[]specs.Hook { return &h.CreateContainer }), want: "createContainer hook #0"},
	} {
		t.Run(name, func(t *testing.T) {
			h.programs.QEMUFaults(c.fault)
			spec, opts := h.spec("wait"), CreateOptions{Bundle: h.bundle, PidFile: pidFile}
			if c.change != nil {
				c.change(spec, &opts)
			}
			opts.Spec = spec
			_, err := h.Create("fails", opts)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Create = %v, want an error with %q", err, c.want)
			}
			if _, err := os.Stat(filepath.Join(h.Root, "fails")); err == nil {
				t.Error("the state directory is left")
			}
			if _, err := os.Stat(pidFile); err == nil {
				t.Error("the pid file is left")
			}
			if cgroups, err := filepath.Glob("/sys/fs/cgroup/*" + spec.Linux.CgroupsPath); err != nil || len(cgroups) > 0 {
				t.Errorf("cgroups are left: %q, %v", cgroups, err)
			}
		})
	}
}

// hook is a change that adds a hook which fails.
func hook(of func(*specs.Hooks) *[]specs.Hook) func(*specs.Spec, *CreateOptions) {
	return func(s *specs.Spec, _ *CreateOptions) {
		s.Hooks = new(specs.Hooks)
		*of(s.Hooks) = []specs.Hook{{Path: "/bin/false"}}
	}
}

// Hooks run at their times, with the state on stdin, and a poststart hook that fails
// deletes the container.
func TestHooks(t *testing.T) {
	h := newHost(t)
	h.NoCgroup = true
	trail := filepath.Join(t.TempDir(), "trail")
	script := func(kind string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo " + kind + " $(grep -o '\"status\":\"[a-z]*\"') >>" + trail}}}
	}
	spec := h.spec("wait")
	spec.Hooks = &specs.Hooks{CreateRuntime: script("createRuntime"), Poststop: script("poststop"), Poststart: append(script("poststart"), specs.Hook{Path: "/bin/false"})}
	c := h.create("hooks", spec, newStreams(t))
	if err := c.Start(); err == nil || !strings.Contains(err.Error(), "poststart hook #1") {
		t.Errorf("Start = %v, want the second hook's failure", err)
	}
	if err := c.Delete(false); !errors.Is(err, ErrNotExist) {
		t.Errorf("Delete = %v, want that the container has gone with the hook", err)
	}
	const want = "createRuntime \"status\":\"created\"\npoststart \"status\":\"running\"\npoststop \"status\":\"stopped\"\n"
	if got, err := os.ReadFile(trail); err != nil || string(got) != want {
		t.Errorf("the hooks have left %q, %v, want %q", got, err, want)
	}
	second := 1
	slow := specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "100"}, Timeout: &second}
	if err := runHooks("poststop", "", []specs.Hook{slow}, specs.State{}); err == nil || !strings.Contains(err.Error(), "timed out after 1 s") {
		t.Errorf("a hook that takes too long: %v", err)
	}
}

// Exec has a process of its own: its streams, its status, its end with its caller.
func TestExec(t *testing.T) {
	h := newHost(t)
	c := h.create("exec", h.spec("wait"), newStreams(t))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	s := newStreams(t)
	if _, err := s.in.WriteString("through exec\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.in.Close(); err != nil {
		t.Fatal(err)
	}
	status, err := c.Exec(ExecOptions{Process: &specs.Process{Args: []string{"cat"}}, Stdio: s.Stdio, PidFile: pidFile})
	if err != nil || status != (guestproto.ExitStatus{}) {
		t.Errorf("exec of cat = %+v, %v", status, err)
	}
	wantLine(t, s.out, "through exec")
	if pid, err := os.ReadFile(pidFile); err != nil || string(pid) != strconv.Itoa(os.Getpid()) {
		t.Errorf("pid file %q, %v, want this process's", pid, err)
	}
	if status, err := c.Exec(ExecOptions{Process: &specs.Process{Args: []string{"exit", "7"}}, Stdio: newStreams(t).Stdio}); err != nil || status.Shell() != 7 {
		t.Errorf("exec of exit 7 = %+v, %v", status, err)
	}
	_, err = c.Exec(ExecOptions{Process: &specs.Process{Args: []string{"nonesuch"}}, Stdio: newStreams(t).Stdio})
	if want := `exec failed: unable to start container process: exec: "nonesuch": executable file not found in $PATH`; err == nil || err.Error() != want {
		t.Errorf("exec of nothing: %v, want %s", err, want)
	}

	// A detached one stands in the container's cgroup beside the monitor.
	d := newStreams(t)
	if err := c.ExecDetached(ExecOptions{Process: &specs.Process{Args: []string{"wait"}}, Stdio: d.Stdio, PidFile: pidFile}); err != nil {
		t.Fatal(err)
	}
	d.letGo()
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	pids, err := c.HostPids()
	slices.Sort(pids)
	if want := []int{c.Pid, pid}; err != nil || !slices.Equal(pids, want) {
		t.Errorf("HostPids = %v, %v, want %v", pids, err, want)
	}
	if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	wantLine(t, d.out, "signal 10")
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != 128+15 {
		t.Errorf("the exec's process ended with %d, %v, want %d", ws.ExitStatus(), err, 128+15)
	}
	if err := c.ExecDetached(ExecOptions{Process: &specs.Process{Args: []string{"nonesuch"}}, Stdio: newStreams(t).Stdio}); err == nil || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("a detached exec of nothing: %v", err)
	}
}

// Update sets the guest's limits, lets the VM grow, and takes the host's back if the
// guest refuses.
func TestUpdate(t *testing.T) {
	h := newHost(t)
	c := h.create("update", h.spec("wait"), newStreams(t))
	more, before := int64(1<<30), c.MemoryMiB
	if err := c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &more}}); err != nil {
		t.Fatal(err)
	}
	if c.MemoryMiB <= before {
		t.Errorf("the VM has %d MiB still", c.MemoryMiB)
	}
	stats, err := c.Stats()
	if err != nil || stats.Memory.Usage.Limit != uint64(more) || stats.CPU.Usage.Total != 5000 || stats.Pids.Limit != 0 {
		t.Errorf("Stats = %+v, %v, want the new limit", stats, err)
	}
	grown := c.MemoryMiB
	pids := int64(10)
	if err := c.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}}); err == nil || !strings.Contains(err.Error(), "refuses a limit of pids") {
		t.Errorf("an update that the guest refuses: %v", err)
	}
	again, err := h.Load("update")
	if err != nil || again.MemoryMiB != grown || again.Resources.Pids != nil {
		t.Errorf("written down is %+v, %v, want the limits before", again.Resources, err)
	}
}

// Events come until the container's end.
func TestEvents(t *testing.T) {
	h := newHost(t)
	h.NoCgroup = true
	c := h.create("events", h.spec("oom"), newStreams(t))
	events, hangUp, err := c.Events()
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var got []Event
	for e := range events {
		got = append(got, e)
	}
	if !slices.Equal(got, []Event{EventOOM}) {
		t.Errorf("events = %q, want one of %q, and the end", got, EventOOM)
	}
}

// A monitor that goes at the last moment takes the pid file with it.
func TestPidFileGoesWithTheMonitor(t *testing.T) {
	ours, theirs := fakevm.Connections(t)
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, birthFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := &birth{c: &Container{dir: dir, State: State{ID: "gone", Pid: 7}}, opts: CreateOptions{PidFile: filepath.Join(dir, "pid")}, sync: ours}
	if err := b.commit(); err == nil || !strings.Contains(err.Error(), "the monitor has ended") {
		t.Errorf("commit = %v, want that the monitor has ended", err)
	}
	if _, err := os.Stat(b.opts.PidFile); err == nil {
		t.Error("the pid file is left")
	}
}
