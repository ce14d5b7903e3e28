package libvm

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/controlport"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/latemounts"
	"github.com/boxlite-oci/boxlite/libvm/lockdown"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// creation is the monitor's half of create.
type creation struct {
	*monitor
	sync     *net.UnixConn // to whoever creates
	share    string        // virtiofsd's directory
	listener *net.UnixListener
	files    vmm.Files
	mirror   *latemounts.Mirror // nil if no bind follows the host
	// gone hears which mounts of the share, by their places in there, the host has taken
	// away.
	gone func(paths []string)
}

// create does everything up to the guest holding the container.
func (m *monitor) create(sync *net.UnixConn) error {
	if err := guestproto.ReadFrame(sync, guestproto.MaxRequest, &m.cfg); err != nil {
		return fmt.Errorf("monitor: read configuration: %w", err)
	}
	m.steps, m.log = recorder(m.cfg.Trace), m.log.With("id", m.cfg.ID)
	m.own.state, m.own.hooks = m.cfg.State, m.cfg.Plan.Guest.Hooks != nil
	c := &creation{monitor: m, sync: sync, share: filepath.Join(m.cfg.StateDir, shareDir), gone: m.letGoOfMounts}
	for _, step := range []func() error{
		c.prepareProcess, c.listen, c.startDialer, c.buildShare, c.openFiles,
		c.startVM, c.reportAdoption, c.dialGuest, c.openStdio, c.countFiles,
		c.enter, c.bootGuest, c.giveUpPower,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	go m.serve(c.listener)
	go m.own.watchOOM()
	m.serveSockets()
	if m.net.host {
		go m.publishPorts()
	}
	return nil
}

// listen opens the socket for the container's commands.
func (c *creation) listen() error {
	dir, err := os.Open(c.cfg.StateDir)
	if err != nil {
		return fault.Wrap("open state dir", err)
	}
	c.listener, err = fdpass.Listen(dir, socketFile)
	_ = dir.Close() // it would lead from the container's root to the host's
	return err
}

// buildShare binds together what virtiofsd will serve.
func (c *creation) buildShare() error {
	if err := rootfs.Detach(); err != nil {
		return fault.Wrap("mount namespace", err)
	}
	label := c.cfg.MountLabel
	if label != "" && !selinux.GetEnabled() {
		c.log.Debug("no SELinux on this host: the mount label is left out", "label", label)
		label = ""
	}
	defer c.steps.Begin("bind the share together")()
	following, err := rootfs.MountShare(c.share, c.cfg.Plan.Binds, label)
	if err == nil {
		c.served.Identity, err = rootfs.IdentityOf(c.share)
	}
	if err != nil || len(following) == 0 {
		rootfs.CloseFollowing(following)
		return err
	}
	c.mirror, err = latemounts.Start(following)
	return err
}

// followHost waits until what the host mounts later shows, if it shall.
func (c *creation) followHost() error {
	if c.mirror == nil {
		return nil
	}
	return c.mirror.Follow(c.gone, c.log)
}

// namesTimeout is how long the guest keeps a name of the share before it asks again, see
// vmm's virtiofsd, and some more.
const namesTimeout = 1200 * time.Millisecond

// letGoOfMounts has the guest find out that mounts of the share have gone. Otherwise
// the host's devices below them stay in use until the container looks there.
func (m *monitor) letGoOfMounts(paths []string) {
	time.AfterFunc(namesTimeout, func() {
		if err := m.own.ask(guestproto.OpLook, guestproto.LookRequest{Paths: paths}, nil); err != nil { // it has ended, or is paused: then the container finds out
			m.log.Debug("have the guest look for mounts that have gone", "error", err)
		}
	})
}

// openFiles opens what the monitor needs of the host later on, and what its VM does.
func (c *creation) openFiles() (err error) {
	c.own.openOOMBell(c.cfg.MemoryCgroup)
	console, err := os.OpenFile(filepath.Join(c.cfg.StateDir, consoleLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fault.Wrap("console log", err)
	}
	if c.net, err = openNetwork(&c.cfg, c.log); err != nil {
		return err
	}
	c.files = vmm.Files{Share: c.share, Nodes: c.cfg.Plan.Nodes, Root: filepath.Join(c.cfg.StateDir, rootDir), Console: console}
	if s := c.cfg.Plan.Scratch; s != nil {
		c.files.Scratch, err = makeScratch(s)
	}
	return err
}

// reportAdoption has whoever creates put a standby VM's processes where the
// container's are.
func (c *creation) reportAdoption() error {
	if taken := c.origin.Taken; taken != nil {
		_ = guestproto.WriteFrame(c.sync, monitorEvent{Event: eventAdopted, Adopted: taken}) // it may have gone, which shows later
	}
	return nil
}

func (c *creation) dialGuest() error {
	guest, err := dialGuest(c.vmm.Control, controlport.Options{
		Stopped: c.paused.gate.isShut, Violated: func(err error) { go c.fail(err) },
	})
	c.guest, c.own.guest = guest, guest
	return err
}

// countFiles begins to watch virtiofsd's open files.
func (c *creation) countFiles() error {
	server, err := c.vmm.OpenFileServer()
	if err == nil {
		c.served.Server = server.Process
		go c.watchFiles(server)
	} else { // if virtiofsd has ended, that shows below
		c.log.Warn("virtiofsd's open files cannot be counted: a container that uses very many may get \"too many open files\" (raise boxlite's limit, ulimit -n)",
			"error", fault.Quiet(err.Error()))
	}
	return nil
}

// giveUpPower leaves the monitor what it needs until the container's end. It is the
// last thing that can fail: from here on the container's own processes may run.
func (m *monitor) giveUpPower() error {
	defer m.steps.Begin("give up privileges")()
	keep := []int{unix.CAP_KILL} // QEMU is another user's
	switch {
	case !m.net.host:
		keep = append(keep, unix.CAP_NET_ADMIN) // taps and filters, until the end
	case m.cfg.Plan.BindsLowPorts():
		keep = append(keep, unix.CAP_NET_BIND_SERVICE) // as the container may, see publishPorts
	}
	return lockdown.Enter(keep...)
}

// startVM gives the monitor its VM, with the share plugged in.
func (c *creation) startVM() (err error) {
	c.began = time.Now()
	verbose := c.cfg.Debug && c.cfg.TemplateDir == "" // a template boots once, for everybody
	starter := &vmm.Starter{
		Parts: c.cfg.Parts, Config: vmm.NewConfig(c.cfg.Parts, c.cfg.Accel, c.cfg.Kernel, c.cfg.Plan.Shape, verbose), Files: c.files,
		// QEMU's label and its namespaces would be the keeper's.
		Standby: (c.cfg.SelinuxLabel == "" || !selinux.GetEnabled()) && !userns.RunningInUserNS() && !c.cfg.HostNetwork,
		Steps:   c.steps, Log: c.log,
	}
	c.vmm, c.origin, err = starter.Start(c.cfg.TemplateDir)
	if c.files.Scratch != nil {
		_ = c.files.Scratch.Close() // QEMU's copy is what keeps it
	}
	if err != nil {
		return c.bootError(err)
	}
	c.log.Debug("got a VM", "origin", c.origin.String(), "after", time.Since(c.began).Round(time.Millisecond))
	c.lost = c.vmm.Lost()
	defer c.steps.Begin("plug the share in")()
	if err := c.vmm.PlugShare(); err != nil {
		return c.bootError(err)
	}
	return nil
}

// enter waits for create's hooks, runs those that belong into the container's
// namespaces and moves the monitor into the rootfs, or into the mount namespace
// that the container shares with others.
func (c *creation) enter() error {
	mounts, err := rootfs.DetachedMounts(c.share, c.cfg.Plan)
	if err != nil {
		return err
	}
	if err := errors.Join(c.openSockets(), c.followHost()); err != nil {
		return err
	}
	var ev monitorEvent
	if err := guestproto.ReadFrame(c.sync, guestproto.MaxReply, &ev); err != nil || ev.Event != eventHooksDone {
		return errors.Join(errors.New("create went away"), err)
	}
	defer c.steps.Begin("enter the rootfs")()
	if err := runHooks("createContainer", c.cfg.Plan.Binds[0].Source, c.cfg.Hooks, c.cfg.State); err != nil {
		return err
	}
	if fd := c.cfg.SharedMountsFD; fd != 0 {
		ns := os.NewFile(uintptr(fd), "mount namespace")
		rootfs.CloseMounts(mounts)
		return errors.Join(enterMounts(ns), ns.Close())
	}
	return rootfs.Enter(filepath.Join(c.share, plan.RootfsName), mounts)
}

// prepareProcess gives the monitor, and so its children, what config.json asks
// of the container's processes on the host, and takes huge pages away.
func (m *monitor) prepareProcess() error {
	if adj := m.cfg.OOMScoreAdj; adj != nil {
		err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*adj)), 0)
		if errors.Is(err, os.ErrPermission) && userns.RunningInUserNS() {
			m.log.Warn("oom_score_adj stays as it is on the host: only its root may lower it", "wanted", *adj)
		} else if err != nil {
			return fault.Wrap(fmt.Sprintf("set oom_score_adj %d", *adj), err)
		}
	}
	if m.cfg.Accel == accel.TCG {
		vmm.DisableHugePages(m.log)
	}
	if err := m.shareHostname(); err != nil {
		return err
	}
	if m.cfg.SelinuxLabel != "" && selinux.GetEnabled() {
		if err := selinux.SetExecLabel(m.cfg.SelinuxLabel); err != nil {
			return fmt.Errorf("set SELinux label %s: %s: this machine's policy does not allow it: docker run --security-opt label=disable", m.cfg.SelinuxLabel, fault.Quiet(err.Error()))
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
		return fault.Wrap("set the host name", unix.Sethostname([]byte(guest.Hostname)))
	}
	if _, joined := m.cfg.Plan.Joins[specs.UTSNamespace]; joined {
		return nil // in the guest too
	}
	name, err := os.Hostname()
	guest.Hostname = name
	return fault.Wrap("read the host name", err)
}

// openStdio decides what the container init's stdio is on the host.
func (m *monitor) openStdio() error {
	proc := m.cfg.Plan.Guest.Process
	if proc == nil || !proc.Terminal {
		m.own.stdio = pipes(os.Stdin, os.Stdout, os.Stderr)
		return nil
	}
	slave, err := openConsole(m.cfg.ConsoleSocket, proc.ConsoleSize)
	if err != nil {
		return err
	}
	m.own.stdio = Stdio{Stdin: slave, Stdout: slave}
	return nil
}

// bootGuest waits for the guest and has it build the container.
func (m *monitor) bootGuest() error {
	if err := m.awaitGuest(); err != nil {
		return m.bootError(err)
	}
	if err := m.buildContainer(); err != nil {
		return m.bootError(err)
	}
	if m.cfg.Plan.Guest.Process == nil {
		return nil
	}
	if err := m.own.connectStdio(); err != nil {
		return err
	}
	go m.own.awaitInit()
	return nil
}

// awaitGuest returns when the guest has said hello.
func (m *monitor) awaitGuest() error {
	defer m.steps.Begin("await the guest's hello")()
	booted := make(chan error, 1)
	go func() {
		release, err := m.guest.hello(m.cfg.Debug, m.vmm.BootTimeout())
		m.log.Debug("guest is up", "after", time.Since(m.began).Round(time.Millisecond), "kernel", release, "choice", m.cfg.Plan.Shape.KernelReason)
		booted <- err
	}()
	select {
	case err := <-booted:
		return err
	case <-m.lost:
		return ErrVMLost
	}
}

// buildContainer has the guest build the container while its network and its clock
// are set.
func (m *monitor) buildContainer() error {
	networked := m.setUpNetwork()
	clockSet := m.setClock()
	m.net.parameters(m.cfg.Plan.Guest.Linux)
	req := guestproto.CreateRequest{
		ID: m.cfg.ID, Spec: m.cfg.Plan.Guest, DeviceFilter: m.cfg.Plan.DeviceFilter, Seccomp: m.cfg.Plan.Seccomp,
		KernelParameters: m.cfg.Plan.KernelParameters, Submounts: m.cfg.Plan.Submounts(), Sockets: m.shownSockets(), NullStdin: m.own.stdio.Stdin == nil, PlainNewlines: m.cfg.PlainNewlines,
		OOMScoreFloor: m.cfg.Plan.OOMScoreFloor,
	}
	err := m.guest.create(req, m.steps, m.vmm.BootTimeout())
	netErr := <-networked // whatever has become of the container: nobody else may have the network meanwhile
	if err := cmp.Or(err, netErr); err != nil {
		return err
	}
	<-clockSet
	return nil
}

// connectStdio begins to carry the container init's streams.
func (m *tenant) connectStdio() (err error) {
	if m.relay, err = startRelay(m.guest, guestproto.Init, m.stdio); err != nil || !m.onTerminal() {
		return err
	}
	return m.guest.resize(guestproto.Init, m.stdio.Stdin)
}

// awaitInit waits for the end of the container init.
func (m *tenant) awaitInit() {
	rep, err := m.guest.wait(guestproto.Init)
	if err != nil {
		err = m.explain(err)
		m.log.Debug("wait for the container init", "error", err)
		rep = guestproto.WaitReply{ExitStatus: guestproto.ExitStatus{Code: exitVMLost}}
	}
	if rep.OOMKilled {
		m.oom.raise(1) // it may not have been heard of otherwise
	}
	m.end = rep
	close(m.ended)
}

// networkTimeout bounds what the guest does with its interfaces while it comes up, be
// it one of many emulated ones on a busy host.
const networkTimeout = 90 * time.Second

// setUpNetwork gives the guest the interfaces that the container's network
// namespace has already, beside what follows.
func (m *monitor) setUpNetwork() <-chan error {
	done := make(chan error, 1)
	setUp := m.steps.Begin("set up the network")
	go func() {
		defer setUp()
		wanted, err := m.net.plug(m.vmm, m.guest)
		if err == nil && m.net.pending(wanted) != nil {
			if err = m.guest.call(guestproto.OpNetwork, wanted, nil, within(networkTimeout)); err == nil {
				m.net.settled(wanted)
			}
		}
		done <- err
	}()
	return done
}

// A clock is good enough that is behind by less than clockTolerance; on a busy
// host it takes some of clockTries until a request was that quick.
const (
	clockTolerance = 20 * time.Millisecond
	clockTries     = 50
)

// setClock sets the guest's clock beside what follows. hello carried the time
// before a boot, or before everything else that a restored VM had to do. The
// channel is closed after the first try; more tries follow if that took too long.
func (m *monitor) setClock() <-chan struct{} {
	tried := make(chan struct{})
	once := sync.OnceFunc(func() { close(tried) })
	go func() {
		defer once()
		for range clockTries {
			late, err := m.tellTime(promptly)
			if err != nil { // the VM has ended, or stands still: resume sets it
				m.log.Debug("set the guest's clock", "error", err)
				return
			}
			if late < clockTolerance {
				return
			}
			once()
		}
	}()
	return tried
}

// tellTime sets the guest's clock once, which is then behind by late at most. A clock
// that is ahead is set back, but for clockTolerance.
func (m *monitor) tellTime(p patience) (late time.Duration, err error) {
	if !m.paused.gate.enter(nil) {
		return 0, ErrPaused
	}
	defer m.paused.gate.leave()
	return m.guest.tellTime(p)
}

// bootError adds what QEMU and virtiofsd said to a VM's end.
func (m *monitor) bootError(err error) error {
	if !errors.Is(err, ErrVMLost) && !errors.Is(err, vmm.ErrNoAnswer) {
		return err
	}
	hint := ""
	if m.cfg.Accel == accel.KVM && !errors.Is(err, ErrVMLost) {
		hint = " (if no kernel runs under this machine's KVM: --accel tcg)"
	}
	err = fmt.Errorf("start the VM (%s): %w%s", m.cfg.Accel, err, hint)
	if m.vmm != nil && errors.Is(err, vmm.ErrNoAnswer) {
		return fmt.Errorf("%w%s%s", err, m.vmm.LastWords(), m.vmm.StuckTasks())
	}
	return m.explain(err)
}
