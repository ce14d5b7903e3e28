package libvm

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/fakevm"
	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// runMonitor is a monitor in this process, with a fake VM whose guest holds a container.
// What a monitor does to its process is left out: mounts, the root, lockdown.
func runMonitor(t *testing.T, process *specs.Process, stdio Stdio) *tenant {
	t.Helper()
	found, err := parts.Find(fakevm.Install(t).Options)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{shareDir, rootDir} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m := newMonitor(slog.New(slog.DiscardHandler))
	m.steps = trace.New(time.Now())
	m.cfg = monitorConfig{
		ID: "unit", StateDir: dir, Parts: found, Kernel: found.Kernels["lean"], Accel: accel.TCG, HostNetwork: true,
		Plan: &plan.Plan{
			Guest: &specs.Spec{Hostname: "unit", Process: process, Linux: &specs.Linux{}},
			Shape: plan.Shape{Kernel: "lean", MemoryMiB: 192, VCPUs: 1},
		},
	}
	sync, _ := fakevm.Connections(t)
	c := &creation{monitor: m, sync: sync, share: filepath.Join(dir, shareDir)}
	t.Cleanup(m.stop)
	openStdio := func() error { m.own.stdio = stdio; return nil }
	for _, step := range []func() error{c.prepareProcess, c.listen, c.openFiles, c.startVM, c.reportAdoption, c.dialGuest, openStdio, c.countFiles, c.bootGuest} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	go m.serve(c.listener)
	go m.own.watchOOM()
	t.Cleanup(func() { _ = c.listener.Close() })
	return m.own
}

// ask makes a request of a monitor, as a command does that is satisfied with the reply.
func ask(t *testing.T, m *tenant, req controlRequest) (controlReply, error) {
	t.Helper()
	conn, reply, err := dialControl(m.cfg.StateDir, req)
	if err == nil {
		err = conn.Close()
	}
	return reply, err
}

// startIt is the start command.
func startIt(t *testing.T, m *tenant) {
	t.Helper()
	conn, reply, err := dialControl(m.cfg.StateDir, controlRequest{Op: controlStart, Trace: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if len(reply.Trace) == 0 {
		t.Error("the reply has no steps")
	}
	if err := guestproto.WriteFrame(conn, monitorEvent{Event: eventCommitted}); err != nil {
		t.Fatal(err)
	}
}

func TestMonitorCarriesOut(t *testing.T) {
	s := newStreams(t)
	m := runMonitor(t, &specs.Process{Args: []string{"wait"}}, s.Stdio)
	if m.origin.Reason != "templates are switched off" || !m.net.hostNIC {
		t.Errorf("origin %+v, user NIC %v", m.origin, m.net.hostNIC)
	}
	startIt(t, m)
	if _, err := ask(t, m, controlRequest{Op: controlStart}); !errors.Is(err, ErrRunning) {
		t.Errorf("a second start: %v, want %v", err, ErrRunning)
	}
	if _, err := ask(t, m, controlRequest{Op: controlSignal, Signal: int(unix.SIGUSR1)}); err != nil {
		t.Errorf("signal: %v", err)
	}
	wantLine(t, s.out, "signal 10")

	// In a pause signals wait, each once, and stats are those from before.
	limit := int64(300 << 20)
	update := &updateParams{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}, MemoryMiB: 400}
	if _, err := ask(t, m, controlRequest{Op: controlUpdate, Update: update}); err != nil {
		t.Errorf("update: %v", err)
	}
	for range 2 {
		if _, err := ask(t, m, controlRequest{Op: controlPause}); err != nil {
			t.Errorf("pause: %v", err)
		}
	}
	for range 2 {
		if _, err := ask(t, m, controlRequest{Op: controlSignal, Signal: int(unix.SIGUSR2)}); err != nil {
			t.Errorf("signal in a pause: %v", err)
		}
	}
	if reply, err := ask(t, m, controlRequest{Op: controlStats}); err != nil || reply.Stats == nil || reply.Stats.Memory.Limit != uint64(limit) {
		t.Errorf("stats in a pause: %+v, %v", reply.Stats, err)
	}
	if _, err := ask(t, m, controlRequest{Op: controlUpdate, Update: update}); !errors.Is(err, ErrPaused) {
		t.Errorf("update in a pause: %v, want %v", err, ErrPaused)
	}
	if _, err := ask(t, m, controlRequest{Op: controlResume}); err != nil {
		t.Errorf("resume: %v", err)
	}
	wantLine(t, s.out, "signal 12")
	if _, err := ask(t, m, controlRequest{Op: controlStats}); err != nil {
		t.Errorf("stats: %v", err)
	}

	for _, bad := range []controlRequest{{Op: controlUpdate}, {Op: "nonesuch"}, {Op: controlExec, Exec: &execParams{}}, {Op: controlExec, Exec: &execParams{Process: &specs.Process{}}}} {
		if _, err := ask(t, m, bad); err == nil {
			t.Errorf("request %+v is no error", bad)
		}
	}

	// The end by a signal, which a caller sent to the monitor.
	signals := make(chan os.Signal, 1)
	go m.forward(signals)
	signals <- unix.SIGTERM
	if got, want := m.waitInit(), 128+15; got != want {
		t.Errorf("status = %d, want %d", got, want)
	}
	if _, err := ask(t, m, controlRequest{Op: controlSignal, Signal: int(unix.SIGTERM)}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("signal after the end: %v, want %v", err, ErrNotRunning)
	}
}

// A start that is not written down ends the container: nobody would know of it.
func TestStartGoesAway(t *testing.T) {
	m := runMonitor(t, &specs.Process{Args: []string{"wait"}}, newStreams(t).Stdio)
	conn, _, err := dialControl(m.cfg.StateDir, controlRequest{Op: controlStart})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if got := m.waitInit(); got != exitVMLost {
		t.Errorf("status = %d, want %d", got, exitVMLost)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil || !strings.Contains(m.failed.Error(), "start went away") {
		t.Errorf("the VM has ended because of %v", m.failed)
	}
}

// SIGKILL ends a container that is paused.
func TestKillPaused(t *testing.T) {
	m := runMonitor(t, &specs.Process{Args: []string{"wait"}}, newStreams(t).Stdio)
	startIt(t, m)
	for _, req := range []controlRequest{{Op: controlPause}, {Op: controlSignal, Signal: int(unix.SIGKILL)}} {
		if _, err := ask(t, m, req); err != nil {
			t.Errorf("%s: %v", req.Op, err)
		}
	}
	if got, want := m.waitInit(), 128+9; got != want {
		t.Errorf("status = %d, want %d", got, want)
	}
}

// An OOM kill is an event, and the container's end is the end of events.
func TestMonitorEvents(t *testing.T) {
	m := runMonitor(t, &specs.Process{Args: []string{"oom"}}, newStreams(t).Stdio)
	conn, _, err := dialControl(m.cfg.StateDir, controlRequest{Op: controlEvents})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	startIt(t, m)
	var ev eventMessage
	if err := guestproto.ReadFrame(conn, guestproto.MaxReply, &ev); err != nil || ev.Event != EventOOM {
		t.Errorf("event = %+v, %v, want %s", ev, err, EventOOM)
	}
	if got, want := m.waitInit(), 128+9; got != want {
		t.Errorf("status = %d, want %d", got, want)
	}
	if err := guestproto.ReadFrame(conn, guestproto.MaxReply, &ev); err == nil {
		t.Errorf("another event: %+v", ev)
	}
	if kills, _ := m.oom.read(); kills != 1 {
		t.Errorf("%d kills are counted", kills)
	}
	m.reportOOM()
}

// beginExecOf asks a monitor for an exec.
func beginExecOf(t *testing.T, m *tenant, s *streams, params *execParams) *execSession {
	t.Helper()
	x, err := startExec(m.cfg.StateDir, controlRequest{Op: controlExec, Exec: params}, s.Stdio, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.conn.Close() })
	return x
}

func TestMonitorExec(t *testing.T) {
	m := runMonitor(t, &specs.Process{Args: []string{"wait"}}, newStreams(t).Stdio)
	startIt(t, m)
	waits := func() *execParams { return &execParams{Process: &specs.Process{Args: []string{"wait"}}} }

	// Signals go to the process, and its end comes back.
	s := newStreams(t)
	x := beginExecOf(t, m, s, waits())
	signals := make(chan os.Signal, 2)
	signals <- unix.SIGUSR1
	signals <- unix.SIGTERM
	if status, err := x.wait(signals); err != nil || status.Signal != int(unix.SIGTERM) {
		t.Errorf("exec = %+v, %v, want SIGTERM", status, err)
	}
	wantLine(t, s.out, "signal 10")

	// The command's end is that of the process.
	s = newStreams(t)
	x = beginExecOf(t, m, s, waits())
	if err := x.conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.out.Read(make([]byte, 1)); err == nil {
		t.Error("the process has said something")
	}

	// One that may wait for the end of a pause does, unless its command has gone.
	if _, err := ask(t, m, controlRequest{Op: controlPause}); err != nil {
		t.Fatal(err)
	}
	gone, late := newStreams(t), newStreams(t)
	patient := &execParams{Process: &specs.Process{Args: []string{"exit", "3"}}, IgnorePaused: true}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(m.cfg.StateDir, socketFile), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fdpass.Send(conn, gone.Stdin, gone.Stdout, gone.Stderr), guestproto.WriteFrame(conn, controlRequest{Op: controlExec, Exec: patient}), conn.Close()); err != nil {
		t.Fatal(err)
	}
	gone.letGo()
	ended := make(chan error, 1)
	go func() {
		x, err := startExec(m.cfg.StateDir, controlRequest{Op: controlExec, Exec: patient}, late.Stdio, nil)
		if err == nil {
			var status execEnd
			status, err = x.wait(nil)
			if status.Code != 3 {
				err = errors.Join(err, errors.New("another status"))
			}
		}
		ended <- err
	}()
	if _, err := ask(t, m, controlRequest{Op: controlResume}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("exec after the pause: %v", err)
	}
	if _, err := gone.out.Read(make([]byte, 1)); err == nil {
		t.Error("the process of a command that has gone has said something")
	}

	// The VM's end is a kill.
	x = beginExecOf(t, m, newStreams(t), waits())
	m.fail(errors.New("for the test"))
	if status, _ := x.wait(nil); status.Signal != int(unix.SIGKILL) {
		t.Errorf("exec = %+v with the VM's end, want SIGKILL", status)
	}
}

// The guest's own words about an exec keep their kind.
func TestMonitorExecRefused(t *testing.T) {
	m := runMonitor(t, &specs.Process{Args: []string{"wait"}}, newStreams(t).Stdio)
	_, err := startExec(m.cfg.StateDir, controlRequest{Op: controlExec, Exec: &execParams{Process: &specs.Process{Args: []string{"nonesuch"}}}}, newStreams(t).Stdio, nil)
	var ge *guestproto.Error
	if !errors.As(err, &ge) || ge.Code != guestproto.CodeCommand {
		t.Errorf("startExec = %v, want the guest's %s", err, guestproto.CodeCommand)
	}
}

// A VM that cannot be started says what QEMU said; one that is slow under KVM, what to
// try.
func TestBootError(t *testing.T) {
	m := &monitor{cfg: monitorConfig{Accel: accel.KVM}}
	if err := m.bootError(ErrProtocol); err.Error() != ErrProtocol.Error() {
		t.Errorf("another error became %v", err)
	}
	if err := m.bootError(ErrVMLost); !errors.Is(err, ErrVMLost) || strings.Contains(err.Error(), "--accel") {
		t.Errorf("a lost VM: %v", err)
	}
	if err := m.bootError(vmm.ErrNoAnswer); !errors.Is(err, vmm.ErrNoAnswer) || !strings.Contains(err.Error(), "--accel tcg") {
		t.Errorf("a silent one: %v", err)
	}
}

// commit waits for create's word.
func TestCommit(t *testing.T) {
	m := &monitor{}
	m.origin.Template, m.origin.Warning = "key", "warning"
	ours, theirs := fakevm.Connections(t)
	done := make(chan error, 1)
	go func() { done <- m.commit(theirs) }()
	var ev monitorEvent
	if err := guestproto.ReadFrame(ours, guestproto.MaxReply, &ev); err != nil || ev.Event != eventReady || ev.Template != "key" || ev.Warning != "warning" {
		t.Errorf("ready = %+v, %v", ev, err)
	}
	if err := guestproto.WriteFrame(ours, monitorEvent{Event: eventCommitted}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("commit = %v", err)
	}
	ours, theirs = fakevm.Connections(t)
	_ = ours.Close()
	if err := m.commit(theirs); err == nil {
		t.Error("commit without create is no error")
	}
}

// What a guest is told of its network.
func TestNetworkParameters(t *testing.T) {
	n := &network{forwards: true, configured: &guestproto.Network{}}
	linux := &specs.Linux{}
	n.parameters(linux)
	if linux.Sysctl["net.ipv4.ip_forward"] != "1" {
		t.Errorf("parameters = %v", linux.Sysctl)
	}
	own := &specs.Linux{Sysctl: map[string]string{"net.ipv4.ip_forward": "0"}}
	n.parameters(own)
	if own.Sysctl["net.ipv4.ip_forward"] != "0" {
		t.Error("the container's own value is overwritten")
	}
	wanted := &guestproto.Network{DNSRelay: true}
	if n.pending(&guestproto.Network{}) != nil || n.pending(wanted) != wanted {
		t.Error("what has changed is not what the guest hears")
	}
	if _, err := n.attachOne(1, guestproto.Interface{Name: "eth0"}, false); err == nil {
		t.Error("a tap was found where there is none")
	}
	n.noTun = os.ErrPermission
	if _, err := n.attachOne(1, guestproto.Interface{Name: "eth0"}, false); !errors.Is(err, os.ErrPermission) {
		t.Errorf("attachOne = %v, want why there is none", err)
	}
}

// restoreNetwork takes a namespace that has gone, and this one, as they are.
func TestRestoreNetwork(t *testing.T) {
	if err := restoreNetwork(filepath.Join(t.TempDir(), "gone"), "id"); err != nil {
		t.Errorf("a namespace that has gone: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := restoreNetwork(plain, "id"); err == nil {
		t.Error("a file passes for a namespace")
	}
}

// The others of a cgroup stand below the monitor, or below the keeper.
func TestStandIns(t *testing.T) {
	h := newHost(t)
	h.NoCgroup = true
	c := h.create("standins", h.spec("wait"), newStreams(t))
	children, err := childrenOf(c.Pid)
	if err != nil || len(children) == 0 {
		t.Fatalf("children = %v, %v", children, err)
	}
	const noPid = 1 << 30
	self := os.Getpid()
	for name, row := range map[string]struct {
		pids            []int
		monitor, keeper int
		want            []int
	}{
		"the monitor and its own":      {append(slices.Clone(children), c.Pid), c.Pid, 0, []int{c.Pid}},
		"a keeper and its own":         {append(slices.Clone(children), c.Pid, self), self, c.Pid, []int{self}},
		"an exec beside the monitor":   {append(slices.Clone(children), c.Pid, self), c.Pid, 0, []int{c.Pid, self}},
		"one that has ended meanwhile": {[]int{noPid, self}, self, 0, []int{self}},
		"nobody":                       {nil, self, 0, nil},
	} {
		if got := standIns(row.pids, row.monitor, row.keeper); !slices.Equal(got, row.want) {
			t.Errorf("%s: standIns(%v, %d, %d) = %v, want %v", name, row.pids, row.monitor, row.keeper, got, row.want)
		}
	}
}
