package libvm

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"boxlite/internal/guestproto"
	"boxlite/internal/trace"
	"boxlite/libvm/accel"
	"boxlite/libvm/parts"
	"boxlite/libvm/qmp"
)

// exitVMLost is what a container's status is when its VM ended under it: QEMU
// was killed, the guest's kernel crashed, or it stopped answering.
const exitVMLost = 255

// monitorConfig is what create tells the monitor. It crosses a socket pair, so
// that nothing of it has to be in a file.
type monitorConfig struct {
	ID       string       `json:"id"`
	StateDir string       `json:"stateDir"`
	Plan     *Plan        `json:"plan"`
	Parts    *parts.Parts `json:"parts"`
	Kernel   string       `json:"kernel"` // path of the vmlinux
	Accel    accel.Accel  `json:"accel"`
	Debug    bool         `json:"debug"`
	// TemplateDir is empty if templates are switched off.
	TemplateDir string `json:"templateDir,omitempty"`

	ConsoleSocket string `json:"consoleSocket,omitempty"`
	// OwnNetNS and OwnUTS say that the namespace was made for the container.
	OwnNetNS    bool `json:"ownNetNS"`
	OwnUTS      bool `json:"ownUTS"`
	HostNetwork bool `json:"hostNetwork"`
	// Sandbox is the id of the pod's first container, see network.
	Sandbox string `json:"sandbox,omitempty"`
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
	// Template and Warning come with ready: the origin of the VM.
	Template string `json:"template,omitempty"`
	Warning  string `json:"warning,omitempty"`
	// Trace comes with ready too, if it was asked for.
	Trace []trace.Span `json:"trace,omitempty"`
}

const (
	eventHooksDone = "hooks-done" // create: prestart and createRuntime hooks have run
	eventReady     = "ready"      // monitor: the container is held before its exec
	eventFailed    = "failed"     // monitor: it could not be made
	eventCommitted = "committed"  // create: state and pid file are written
)

// monitor owns a container's VM for as long as it lives.
type monitor struct {
	cfg    monitorConfig
	log    *slog.Logger
	steps  *trace.Recorder // of create; nil if nobody asked
	vmm    *vmm
	began  time.Time // of the VM's start
	origin origin
	guest  *guest
	net    *network

	stdio Stdio
	relay *relay
	ended chan struct{}        // closed when the container init has ended,
	end   guestproto.WaitReply // which happened like this
	lost  <-chan struct{}

	mu       sync.Mutex
	started  bool
	nextExec int
	killed   bool // SIGKILL was asked for

	paused pauseState
	oom    oomCount

	grownMiB int // memory that growMemory has plugged in
}

// RunMonitor is the life of the monitor process, which create starts in the
// container's namespaces, cgroup and session with the container's stdio:
//
//	create                                       monitor
//	 |-- monitorConfig ---------------------------->|  mounts the share, starts virtiofsd and QEMU
//	 |-- hooks-done ------------------------------->|  meanwhile the guest boots
//	 |<----------------------- ready or failed -----|  the guest holds the container
//	 |-- committed -------------------------------->|  from here on it lives by itself
//
// The connection closing before committed is the end of the container: nobody
// would know of it. RunMonitor returns the status that the process shall exit
// with, which is the container init's.
func RunMonitor(sync *net.UnixConn, log *slog.Logger) int {
	m := &monitor{log: log, ended: make(chan struct{})}
	signals := catchSignals()
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
	go m.forward(signals)
	status := m.waitInit()
	m.reportOOM()
	return status
}

// create does everything up to the guest holding the container.
func (m *monitor) create(sync *net.UnixConn) error {
	if err := guestproto.ReadFrame(sync, guestproto.MaxRequest, &m.cfg); err != nil {
		return fmt.Errorf("monitor: read configuration: %w", err)
	}
	cfg := &m.cfg
	m.steps = recorder(cfg.Trace)
	m.log = m.log.With("id", cfg.ID)
	if err := m.prepareProcess(); err != nil {
		return err
	}
	dir, err := os.Open(cfg.StateDir)
	if err != nil {
		return partError("open state dir", err)
	}
	listener, err := listenControl(dir)
	if err != nil {
		return err
	}
	if err := detachMounts(); err != nil {
		return partError("mount namespace", err)
	}
	m.openOOMBell()
	share := filepath.Join(cfg.StateDir, shareDir)
	label := cfg.MountLabel
	if label != "" && !selinux.GetEnabled() {
		m.log.Debug("no SELinux on this host: the mount label is left out", "label", label)
		label = ""
	}
	mounted := m.steps.Begin("bind the share together")
	err = mountShare(share, cfg.Plan.Binds, label)
	mounted()
	if err != nil {
		return err
	}
	console, err := os.OpenFile(filepath.Join(cfg.StateDir, consoleLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return partError("console log", err)
	}
	if m.net, err = openNetwork(cfg, m.log); err != nil {
		return err
	}
	files := vmmFiles{share: share, root: filepath.Join(cfg.StateDir, rootDir), console: console}
	if s := cfg.Plan.Scratch; s != nil {
		if files.scratch, err = s.file(); err != nil {
			return err
		}
	}
	err = m.startVM(files)
	if files.scratch != nil {
		_ = files.scratch.Close() // QEMU's copy is what keeps it
	}
	if err != nil {
		return err
	}
	if m.guest, err = dialGuest(m.vmm.control); err != nil {
		return err
	}
	if err := m.openStdio(); err != nil {
		return err
	}
	descriptors, err := m.vmm.openDescriptors()
	if err != nil {
		return m.bootError(err)
	}
	go m.watchFiles(descriptors)
	if err := m.enter(sync, share); err != nil {
		return err
	}
	if err := m.bootGuest(); err != nil {
		return err
	}
	go m.serve(listener)
	go m.watchOOM()
	return nil
}

// startVM gives the monitor its VM, with the share plugged in.
func (m *monitor) startVM(files vmmFiles) (err error) {
	m.began = time.Now()
	verbose := m.cfg.Debug && m.cfg.TemplateDir == "" // a template boots once, for everybody
	cfg := newVMConfig(m.cfg.Parts, m.cfg.Accel, m.cfg.Kernel, m.cfg.Plan.Shape, verbose)
	starter := &vmStarter{parts: m.cfg.Parts, cfg: cfg, files: files, steps: m.steps, log: m.log}
	if m.vmm, m.origin, err = starter.start(m.cfg.TemplateDir); err != nil {
		return m.bootError(err)
	}
	if m.origin.template != "" {
		m.log.Debug("restored from template", "key", m.origin.template, "after", time.Since(m.began).Round(time.Millisecond))
	} else {
		m.log.Debug("booting", "because", m.origin.reason)
	}
	m.lost = m.vmm.lost()
	plugged := m.steps.Begin("plug the share in")
	err = m.vmm.plugShare()
	plugged()
	if err != nil {
		if errors.Is(err, qmp.ErrEnded) {
			err = ErrVMLost
		}
		return m.bootError(err)
	}
	return nil
}

// enter waits for create's hooks, runs those that belong into the container's
// namespaces and moves the monitor into the rootfs, or into the mount namespace
// that the container shares with others.
func (m *monitor) enter(sync *net.UnixConn, share string) error {
	mounts, err := detachedMounts(share, m.cfg.Plan.Binds, m.cfg.Plan.Guest.Mounts)
	if err != nil {
		return err
	}
	var ev monitorEvent
	if err := guestproto.ReadFrame(sync, guestproto.MaxReply, &ev); err != nil || ev.Event != eventHooksDone {
		return errors.Join(errors.New("create went away"), err)
	}
	defer m.steps.Begin("enter the rootfs")()
	if err := runHooks("createContainer", m.cfg.Hooks, m.cfg.State); err != nil {
		return err
	}
	if fd := m.cfg.SharedMountsFD; fd != 0 {
		ns := os.NewFile(uintptr(fd), "mount namespace")
		closeMounts(mounts)
		return errors.Join(enterMounts(ns), ns.Close())
	}
	return enterRootfs(filepath.Join(share, rootfsName), mounts)
}

// prepareProcess gives the monitor, and so its children, what config.json asks
// of the container's processes on the host.
func (m *monitor) prepareProcess() error {
	if adj := m.cfg.OOMScoreAdj; adj != nil {
		err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*adj)), 0)
		if errors.Is(err, os.ErrPermission) && userns.RunningInUserNS() {
			m.log.Warn("oom_score_adj stays as it is on the host: only its root may lower it", "wanted", *adj)
		} else if err != nil {
			return partError(fmt.Sprintf("set oom_score_adj %d", *adj), err)
		}
	}
	if m.cfg.Accel == accel.TCG {
		// QEMU asks for huge pages for its translations and some of its tables, and fills few of them: 3 MiB of
		// a VM for nothing. Children inherit this (prctl(2)).
		if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
			return partError("switch huge pages off", err)
		}
	}
	if err := m.shareHostname(); err != nil {
		return err
	}
	if m.cfg.SelinuxLabel != "" && selinux.GetEnabled() {
		if err := selinux.SetExecLabel(m.cfg.SelinuxLabel); err != nil {
			return fmt.Errorf("set SELinux label %s: %w", m.cfg.SelinuxLabel, err)
		}
	}
	return nil
}

// shareHostname gives a UTS namespace made for the container its name on the host
// too, where others may join it, and a container without a name that of the
// namespace it has joined: a pod's, or the host's.
func (m *monitor) shareHostname() error {
	guest := m.cfg.Plan.Guest
	if guest.Hostname != "" {
		if !m.cfg.OwnUTS {
			return nil
		}
		return partErrorOrNil("set the host name", unix.Sethostname([]byte(guest.Hostname)))
	}
	name, err := os.Hostname()
	guest.Hostname = name
	return partErrorOrNil("read the host name", err)
}

// openStdio decides what the container init's stdio is on the host.
func (m *monitor) openStdio() error {
	proc := m.cfg.Plan.Guest.Process
	if proc == nil || !proc.Terminal {
		m.stdio = Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		return nil
	}
	slave, err := openConsole(m.cfg.ConsoleSocket, proc.ConsoleSize)
	if err != nil {
		return err
	}
	m.stdio = Stdio{Stdin: slave, Stdout: slave}
	return nil
}

// bootTimeout bounds the wait for a guest to come up. Under TCG many VMs may be
// booting on few processors. Under KVM, where it takes a fraction of a second,
// a guest that is not there after some seconds never will be; a KVM that is
// itself emulated needs 5 to 10 (e2e/kvm).
func bootTimeout(a accel.Accel) time.Duration {
	if a == accel.KVM {
		return 20 * time.Second
	}
	return 120 * time.Second
}

// bootGuest waits for the guest and has it build the container.
func (m *monitor) bootGuest() error {
	booted := make(chan error, 1)
	greeted := m.steps.Begin("await the guest's hello")
	go func() {
		release, err := m.guest.hello(m.cfg.Debug, bootTimeout(m.cfg.Accel))
		m.log.Debug("guest is up", "after", time.Since(m.began).Round(time.Millisecond), "kernel", release, "choice", m.cfg.Plan.Shape.KernelReason)
		booted <- err
	}()
	select {
	case err := <-booted:
		if err != nil {
			return m.bootError(err)
		}
	case <-m.lost:
		return m.bootError(ErrVMLost)
	}
	greeted()
	clockSet := m.setClock()
	req := guestproto.CreateRequest{ID: m.cfg.ID, Spec: m.cfg.Plan.Guest, DeviceFilter: m.cfg.Plan.DeviceFilter}
	if err := m.guest.create(req, m.steps, bootTimeout(m.cfg.Accel)); err != nil {
		return m.bootError(err)
	}
	<-clockSet
	if m.cfg.Plan.Guest.Process == nil {
		return nil
	}
	relay, err := startRelay(m.guest, guestproto.Init, m.stdio)
	if err != nil {
		return err
	}
	m.relay = relay
	if m.cfg.Plan.Guest.Process.Terminal {
		if err := m.guest.resize(guestproto.Init, m.stdio.Stdin); err != nil {
			return err
		}
	}
	go func() {
		rep, err := m.guest.wait(guestproto.Init)
		if err != nil {
			m.log.Debug("wait for the container init", "error", err)
			rep = guestproto.WaitReply{Code: exitVMLost}
		}
		if rep.OOMKilled {
			m.oom.raise(1) // it may not have been heard of otherwise
		}
		m.end = rep
		close(m.ended)
	}()
	return nil
}

// A clock is good enough that is behind by less than clockTolerance; on a busy
// host it takes some of clockTries until a request was that quick.
const (
	clockTolerance = 20 * time.Millisecond
	clockTries     = 50
)

// setClock sets the guest's clock beside what follows: hello's time was that
// before a boot, or before much else that a restored VM had to do. The channel
// is closed after the first try; others go on where that took too long.
func (m *monitor) setClock() <-chan struct{} {
	tried := make(chan struct{})
	once := sync.OnceFunc(func() { close(tried) })
	go func() {
		defer once()
		for range clockTries {
			began := time.Now()
			err := m.ask(guestproto.OpClock, guestproto.ClockRequest{UnixNano: began.UnixNano()}, nil)
			if err != nil { // the VM has ended, or stands still: resume sets it
				m.log.Debug("set the guest's clock", "error", err)
				return
			}
			if time.Since(began) < clockTolerance {
				return
			}
			once()
		}
	}()
	return tried
}

// bootError adds what QEMU and virtiofsd said to a VM's end.
func (m *monitor) bootError(err error) error {
	if !errors.Is(err, ErrVMLost) && !strings.Contains(err.Error(), "no answer") {
		return err
	}
	hint := ""
	if m.cfg.Accel == accel.KVM && !errors.Is(err, ErrVMLost) {
		hint = " (if no kernel runs under this machine's KVM: --accel tcg)"
	}
	said := ""
	if m.vmm != nil {
		said = m.vmm.qemu.lastWords() + m.vmm.virtiofsd.lastWords()
	}
	return fmt.Errorf("start the VM (%s): %w%s%s", m.cfg.Accel, err, hint, said)
}

// commit tells create that all is ready and waits until it has told the world.
func (m *monitor) commit(sync *net.UnixConn) error {
	ready := monitorEvent{Event: eventReady, Template: m.origin.template, Warning: m.origin.warning, Trace: m.steps.Take()}
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
func (m *monitor) waitInit() int {
	end := guestproto.WaitReply{Code: exitVMLost}
	select {
	case <-m.ended:
		end = m.end
	case <-m.lost:
		select {
		case <-m.ended: // both have: the container's own end counts
			end = m.end
		default:
		}
		m.log.Warn("the VM has ended under the container", "qemu", m.vmm.qemu.lastWords(), "virtiofsd", m.vmm.virtiofsd.lastWords())
		m.vmm.kill() // a guest without its files goes on for as long as nobody ends it, and keeps the streams open
	}
	if m.relay != nil {
		m.relay.drain()
	}
	status := ExitStatus{Code: end.Code & 0xff, Signal: end.Signal & 0x7f}
	m.mu.Lock()
	if m.killed && status.Code == exitVMLost {
		status = ExitStatus{Signal: int(unix.SIGKILL)}
	}
	m.mu.Unlock()
	m.log.Debug("the container has ended", "code", status.Code, "signal", status.Signal, "oom", end.OOMKilled)
	return status.Shell()
}

// stop ends the VM. What the container wrote is in the host's files by then.
func (m *monitor) stop() {
	if m.vmm != nil {
		m.vmm.kill()
	}
	if m.net != nil {
		m.net.detach()
	}
}

// catchSignals takes over every signal that can be caught, before the first
// can arrive. SIGPIPE is caught to become an error of the write; SIGURG is the
// Go runtime's own, SIGCHLD says nothing that Wait does not.
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
func (m *monitor) forward(signals <-chan os.Signal) {
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
func (m *monitor) onTerminal() bool { return m.stdio.Stderr == nil && m.stdio.Stdin != nil }

// resize gives the container init's terminal the size of the host's.
func (m *monitor) resize() error {
	if !m.paused.gate.enter(nil) {
		return ErrPaused
	}
	defer m.paused.gate.leave()
	return m.guest.resize(guestproto.Init, m.stdio.Stdin)
}

// killPatience is how long a SIGKILL may take in the guest before the VM itself
// is ended.
const killPatience = 3 * time.Second

func (m *monitor) signal(n int, all bool) error {
	if n == int(unix.SIGKILL) {
		m.mu.Lock()
		if !m.killed {
			m.killed = true
			time.AfterFunc(killPatience, m.endVM)
		}
		m.mu.Unlock()
		if _, err := m.unpause(); err != nil {
			m.log.Debug("resume for SIGKILL", "error", err) // the VM is ended in a moment
		}
	}
	if !m.paused.gate.enter(func() { m.queueSignal(n, all) }) {
		return nil
	}
	defer m.paused.gate.leave()
	err := m.guest.signal(guestproto.Init, n, all)
	if n == int(unix.SIGKILL) && errors.Is(err, ErrVMLost) {
		return nil
	}
	var ge *guestproto.Error
	if errors.As(err, &ge) && ge.Code == guestproto.CodeNoProcess {
		return fmt.Errorf("%w", ErrNotRunning)
	}
	return err
}

// endVM is for a guest that did not carry out a SIGKILL. A container that has
// ended may still be writing its output, which takes what it takes.
func (m *monitor) endVM() {
	select {
	case <-m.ended:
	default:
		m.log.Warn("the guest did not end on SIGKILL: ending the VM")
		m.vmm.kill()
	}
}

// start looks at the network namespace as it is now, gives the guest its
// interfaces and lets the container init go.
func (m *monitor) start(steps *trace.Recorder) (err error) {
	m.mu.Lock() // not for longer: a signal may have to end what start waits for
	started := m.started
	m.started = true
	m.mu.Unlock()
	if started {
		return ErrRunning
	}
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.started = err == nil
	}()
	plugged := steps.Begin("plug the network in")
	wanted, err := m.net.plug(m.vmm.qmp, m.guest)
	plugged()
	if err != nil {
		return err
	}
	req, timeout := guestproto.StartRequest{Network: wanted}, requestTimeout
	if m.cfg.Plan.Guest.Hooks != nil {
		state := m.cfg.State
		state.Pid = 1 // as the hooks see the container
		req.State, timeout = &state, 0
	}
	defer steps.Begin("set up the network and start, in the guest")()
	return m.guest.call(guestproto.OpStart, req, nil, timeout)
}
