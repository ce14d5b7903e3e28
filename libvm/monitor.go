package libvm

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// exitVMLost is the status of a container whose VM ended before it: QEMU was
// killed, the guest's kernel crashed, or the guest stopped answering.
const exitVMLost = 255

// monitorConfig is what create tells the monitor. It crosses a socket pair, so
// that nothing of it has to be in a file.
type monitorConfig struct {
	ID       string       `json:"id"`
	StateDir string       `json:"stateDir"`
	Plan     *plan.Plan   `json:"plan"`
	Parts    *parts.Parts `json:"parts"`
	Kernel   string       `json:"kernel"` // path of the vmlinux
	Accel    accel.Accel  `json:"accel"`
	Debug    bool         `json:"debug"`
	// TemplateDir is empty if templates are switched off.
	TemplateDir string `json:"templateDir,omitempty"`

	ConsoleSocket string `json:"consoleSocket,omitempty"`
	PlainNewlines bool   `json:"plainNewlines,omitempty"`
	// OwnNetNS and OwnUTS say that the namespace was made for the container.
	OwnNetNS    bool `json:"ownNetNS"`
	OwnUTS      bool `json:"ownUTS"`
	HostNetwork bool `json:"hostNetwork"`
	// PodDir is where the monitor is that owns the VM of a pod's member; empty for any
	// other container.
	PodDir string `json:"podDir,omitempty"`
	// SharedMountsFD, if not zero, is the monitor's descriptor of the mount
	// namespace that it joins, see sharedMounts.
	SharedMountsFD int `json:"sharedMountsFD,omitempty"`

	SelinuxLabel string `json:"selinuxLabel,omitempty"`
	MountLabel   string `json:"mountLabel,omitempty"`
	OOMScoreAdj  *int   `json:"oomScoreAdj,omitempty"`
	// Hooks are the createContainer hooks, which run in the container's
	// namespaces, and State is what they read on stdin.
	Hooks []specs.Hook `json:"hooks,omitempty"`
	State specs.State  `json:"state"`
	// MemoryCgroup is the directory of the host's memory cgroup, or empty.
	MemoryCgroup string `json:"memoryCgroup,omitempty"`
	// Trace asks for the steps with ready.
	Trace bool `json:"trace,omitempty"`
}

// monitorEvent is a message between create and the monitor, see RunMonitor.
type monitorEvent struct {
	Event string        `json:"event"`
	Error *controlError `json:"error,omitempty"`
	// Adopted comes with eventAdopted.
	Adopted *vmm.Handover `json:"adopted,omitempty"`
	// Template and Warning come with ready: the origin of the VM.
	Template string `json:"template,omitempty"`
	Warning  string `json:"warning,omitempty"`
	// Trace comes with ready too, if it was asked for.
	Trace []trace.Span `json:"trace,omitempty"`
}

const (
	eventHooksDone = "hooks-done" // create: prestart and createRuntime hooks have run
	eventAdopted   = "adopted"    // monitor: it has a standby VM
	eventReady     = "ready"      // monitor: the container is held before its exec
	eventFailed    = "failed"     // monitor: it could not be made
	eventCommitted = "committed"  // create: state and pid file are written
	// These are for a pod's member, whose stand-in is the one of a monitor.
	eventTree     = "tree"     // stand-in: a mount with the member's files follows
	eventAttached = "attached" // create: virtiofsd serves it
)

// monitor owns a container's VM for as long as it lives.
type monitor struct {
	cfg    monitorConfig
	log    *slog.Logger
	steps  *trace.Recorder // of create; nil if nobody asked
	vmm    *vmm.VM
	began  time.Time // of the VM's start
	origin vmm.Origin
	guest  *guest
	net    *network
	// sockets are the host's that the container may connect to; nil for none.
	sockets *hostSockets
	own     *tenant // the monitor's container
	lost    <-chan struct{}
	// served is what virtiofsd serves; without a server if nobody can be shown it.
	served rootfs.RunningShare

	mu     sync.Mutex // of the tenants too
	failed error      // why the monitor has ended the VM, if it has
	paused pauseState
	pod    pod
}

// RunMonitor does the work of the monitor, the process that create starts in the
// container's namespaces and cgroup, in a session of its own and with the
// container's stdio:
//
//	create                                       monitor
//	 |-- monitorConfig ---------------------------->|  mounts the share, starts virtiofsd and QEMU
//	 |<------------------------------- adopted -----|  only if the VM was a standby VM
//	 |-- hooks-done ------------------------------->|  meanwhile the guest boots
//	 |<----------------------- ready or failed -----|  the guest holds the container
//	 |-- committed -------------------------------->|  from here on it lives by itself
//
// If the connection closes before committed, the monitor ends the container, as
// nobody would know of it. RunMonitor returns the status that the process shall
// exit with, which is the container init's.
func RunMonitor(sync *net.UnixConn, log *slog.Logger) int {
	m := newMonitor(log)
	signals := catchSignals()
	loadTimeZone()
	err := m.create(sync)
	defer m.stop()
	if err != nil {
		m.log.Debug("create failed", "error", err)
		_ = guestproto.WriteFrame(sync, monitorEvent{Event: eventFailed, Error: toControlError(err)}) // create may have gone
		_ = sync.Close()
		return 1
	}
	if err := m.commit(sync); err != nil {
		m.log.Warn("create went away before the container was registered", "error", err)
		return 1
	}
	go m.own.forward(signals)
	status := m.own.waitInit()
	m.evictMembers()
	if status == exitVMLost {
		m.own.awaited.shut(answerPatience)
	}
	m.own.answering.shut(answerPatience)
	m.own.reportOOM()
	return status
}

func newMonitor(log *slog.Logger) *monitor {
	m := &monitor{log: log, pod: pod{members: map[string]*tenant{}, evicted: make(chan struct{})}}
	m.own = newTenant(m)
	return m
}

// loadTimeZone makes package time read the host's time zone now. Otherwise it would
// read the zone on first use, from the container's files.
func loadTimeZone() { _, _ = time.Now().Zone() }

// answerPatience bounds how long the monitor stays to answer when its container has
// ended. A short-lived container can end before the guest's word arrives that the
// container has started.
const answerPatience = 10 * time.Second

// commit tells create that everything is ready, and waits until create has written
// down that the container is there.
func (m *monitor) commit(sync *net.UnixConn) error {
	ready := monitorEvent{Event: eventReady, Template: m.origin.Template, Warning: m.origin.Warning, Trace: m.steps.Take()}
	if err := guestproto.WriteFrame(sync, ready); err != nil {
		return err
	}
	var ev monitorEvent
	if err := guestproto.ReadFrame(sync, guestproto.MaxReply, &ev); err != nil {
		return err
	}
	return sync.Close()
}

// waitInit waits for the end of the container, has its output written out, and
// returns its status.
func (m *tenant) waitInit() int {
	end := guestproto.WaitReply{ExitStatus: guestproto.ExitStatus{Code: exitVMLost}}
	select {
	case <-m.ended:
		end = m.end
	case <-m.lost:
		select {
		case <-m.ended: // both have: the container's own end counts
			end = m.end
		default:
		}
		m.mu.Lock()
		failed := m.failed
		m.mu.Unlock()
		m.log.Warn("the VM has ended under the container", "because", failed, "processes", m.vmm.LastWords())
		m.vmm.Kill() // a guest without its files goes on for as long as nobody ends it, and keeps the streams open
	}
	if m.relay != nil {
		m.relay.drain(m.killed)
	}
	status := end.ExitStatus
	if m.wasKilled() {
		m.vmm.Kill() // whoever waits for an answer of the guest's has waited enough
		if status.Code == exitVMLost {
			status = guestproto.ExitStatus{Signal: int(unix.SIGKILL)}
		}
	}
	m.log.Debug("the container has ended", "code", status.Code, "signal", status.Signal, "oom", end.OOMKilled)
	return status.Shell()
}

// stop ends the VM. What the container wrote is in the host's files by then.
func (m *monitor) stop() {
	if m.vmm != nil {
		m.vmm.Close()
	}
	if m.net != nil {
		m.net.detach()
	}
	if m.sockets != nil {
		m.sockets.dialer.Close()
	}
}

// catchSignals takes over every signal that can be caught, before the first can
// arrive. It catches SIGPIPE, so that a write returns an error instead. It leaves
// out SIGURG, which the Go runtime uses, and SIGCHLD, which says no more than Wait
// does.
func catchSignals() <-chan os.Signal {
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	c := make(chan os.Signal, 64)
	for n := syscall.Signal(1); n < 65; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGPIPE, unix.SIGURG, unix.SIGCHLD:
		default:
			signal.Notify(c, n)
		}
	}
	return c
}

// forward hands signals that were sent to the monitor to the container init: its
// pid is the one that callers have.
func (m *tenant) forward(signals <-chan os.Signal) {
	for s := range signals {
		n := s.(syscall.Signal)
		if n == unix.SIGWINCH && m.onTerminal() {
			if err := m.resize(); err != nil { // after a pause it is made up for
				m.log.Debug("resize", "error", err)
			}
			continue
		}
		if err := m.signal(int(n), false); err != nil {
			m.log.Debug("forward signal", "signal", int(n), "error", err)
		}
	}
}

// onTerminal says that the container init has a terminal.
func (m *tenant) onTerminal() bool { return m.stdio.Stderr == nil && m.stdio.Stdin != nil }

// resize gives the container init's terminal the size of the host's.
func (m *tenant) resize() error {
	if !m.paused.gate.enter(nil) {
		return ErrPaused
	}
	defer m.paused.gate.leave()
	return m.guest.resize(guestproto.Init, m.stdio.Stdin)
}

// killPatience is how long a SIGKILL may take in the guest before the VM itself
// is ended.
const killPatience = 2 * time.Second

func (m *tenant) signal(n int, all bool) error {
	if n == int(unix.SIGKILL) {
		if m.markKilled() {
			time.AfterFunc(killPatience, m.endVM)
		}
		if _, err := m.unpause(); err != nil {
			m.log.Debug("resume for SIGKILL", "error", err) // the VM is ended in a moment
		}
	}
	if !m.paused.gate.enter(func() { m.queueSignal(n, all) }) {
		return nil
	}
	defer m.paused.gate.leave()
	err := m.guest.signal(guestproto.Init, n, all)
	if n == int(unix.SIGKILL) && (errors.Is(err, ErrVMLost) || errors.Is(err, ErrProtocol)) {
		return nil // either way it has ended
	}
	var ge *guestproto.Error
	if errors.As(err, &ge) && ge.Code == guestproto.CodeNoProcess {
		return fmt.Errorf("%w", ErrNotRunning)
	}
	return err
}

// markKilled has the container's end be one by SIGKILL. It says whether it is the first to.
func (m *tenant) markKilled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wasKilled() {
		return false
	}
	close(m.killed)
	return true
}

func (m *tenant) wasKilled() bool {
	select {
	case <-m.killed:
		return true
	default:
		return false
	}
}

// endVM is for a guest that did not carry out a SIGKILL. A container that has
// ended may still be writing its output; as much of it as is taken in outputPatience.
// A member is given up: the others need the VM.
func (m *tenant) endVM() {
	select {
	case <-m.ended:
		if m.isOwn() {
			time.AfterFunc(outputPatience, m.vmm.Kill)
		}
	default:
		if !m.isOwn() {
			close(m.givenUp)
			return
		}
		m.fail(errors.New("the guest did not end on SIGKILL"))
	}
}

// outputPatience is how long the output of a container that was killed may take.
const outputPatience = 2 * time.Second

// fail ends the VM, and with it the container.
func (m *monitor) fail(reason error) {
	m.mu.Lock()
	if m.failed == nil {
		m.failed = reason
	}
	m.mu.Unlock()
	m.log.Warn("ending the VM", "because", reason)
	m.vmm.Kill()
}

// start looks at the network namespace as it is now, gives the guest interfaces
// that have come since create and lets the container init go. It may be asked for
// once: whatever fails then, the caller ends the VM.
func (m *tenant) start(steps *trace.Recorder) error {
	m.mu.Lock() // not for longer: a signal may have to end what start waits for
	started := m.started
	m.started = true
	m.mu.Unlock()
	if started {
		return ErrRunning
	}
	if !m.isOwn() {
		return m.startIn(steps, guestproto.StartRequest{})
	}
	plugged := steps.Begin("look at the network again")
	wanted, err := m.net.plug(m.vmm, m.guest)
	plugged()
	if err != nil {
		return err
	}
	if err := m.startIn(steps, guestproto.StartRequest{Network: m.net.pending(wanted)}); err != nil {
		return err
	}
	m.net.settled(wanted)
	go m.follow()
	go m.followFiles()
	return nil
}

// startIn has the guest let the container init go.
func (m *tenant) startIn(steps *trace.Recorder, req guestproto.StartRequest) error {
	if m.onTerminal() {
		if err := m.resize(); err != nil { // what has come since create
			return err
		}
	}
	defer steps.Begin("start, in the guest")()
	if !m.hooks {
		return m.guest.call(guestproto.OpStart, req, nil, within(startTimeout))
	}
	state := m.state
	state.Pid = 1 // as the hooks see the container
	req.State = &state
	return m.startWithHooks(req)
}

const (
	// startTimeout bounds a start: the guest configures its network and executes.
	startTimeout = 60 * time.Second
	// hookLook is how often a guest whose hooks take their time is asked whether it
	// lives.
	hookLook = 10 * time.Second
)

// startWithHooks waits for as long as the hooks take and the guest gives signs of
// life.
func (m *tenant) startWithHooks(req guestproto.StartRequest) error {
	c := m.guest.begin(guestproto.OpStart, req, nil, 0)
	for {
		stream, err := c.await(within(hookLook))
		if !errors.Is(err, vmm.ErrNoAnswer) {
			if stream != nil {
				_ = stream.Close() // nothing follows the reply
			}
			return err
		}
		if _, err := m.guest.stats(promptly); err != nil {
			go c.abandon()
			return fmt.Errorf("startContainer hooks: %w", err)
		}
	}
}
