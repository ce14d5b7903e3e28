package libvm

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"boxlite/internal/guestproto"
	"boxlite/libvm/accel"
	"boxlite/libvm/controlport"
	"boxlite/libvm/lockdown"
	"boxlite/libvm/qmp"
)

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
	listener, err := listenIn(dir, socketFile)
	_ = dir.Close() // it would lead from the container's root to the host's
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
	files := vmmFiles{share: share, nodes: cfg.Plan.Nodes, root: filepath.Join(cfg.StateDir, rootDir), console: console}
	if s := cfg.Plan.Scratch; s != nil {
		if files.scratch, err = makeScratch(s); err != nil {
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
	if taken := m.origin.taken; taken != nil {
		_ = guestproto.WriteFrame(sync, monitorEvent{Event: eventAdopted, Adopted: taken}) // create may have gone, which shows later
	}
	port := controlport.Options{Stopped: m.paused.gate.isShut, Violated: func(err error) { go m.fail(err) }}
	if m.guest, err = dialGuest(m.vmm.control, port); err != nil {
		return err
	}
	if err := m.openStdio(); err != nil {
		return err
	}
	if server, err := m.vmm.openFileServer(); err == nil {
		go m.watchFiles(server)
	} else { // if virtiofsd has ended, that shows below
		m.log.Warn("virtiofsd's open files cannot be counted: a container that uses very many may get \"too many open files\" (raise boxlite's limit, ulimit -n)",
			"error", quiet(err.Error()))
	}
	if err := m.enter(sync, share); err != nil {
		return err
	}
	if err := m.bootGuest(); err != nil {
		return err
	}
	if err := m.giveUpPower(); err != nil {
		return partError("give up privileges", err)
	}
	go m.serve(listener)
	go m.watchOOM()
	return nil
}

// giveUpPower leaves the monitor what it needs until the container's end. It is the
// last thing that can fail: from here on the container's own processes may run.
func (m *monitor) giveUpPower() error {
	defer m.steps.Begin("give up privileges")()
	keep := []int{unix.CAP_KILL} // QEMU is another user's
	if !m.net.host {
		keep = append(keep, unix.CAP_NET_ADMIN) // taps and filters, at start and at the end
	}
	return lockdown.Enter(keep...)
}

// startVM gives the monitor its VM, with the share plugged in.
func (m *monitor) startVM(files vmmFiles) (err error) {
	m.began = time.Now()
	verbose := m.cfg.Debug && m.cfg.TemplateDir == "" // a template boots once, for everybody
	cfg := newVMConfig(m.cfg.Parts, m.cfg.Accel, m.cfg.Kernel, m.cfg.Plan.Shape, verbose)
	starter := &vmStarter{parts: m.cfg.Parts, cfg: cfg, files: files, steps: m.steps, log: m.log}
	// QEMU's label and its namespaces would be the keeper's.
	starter.standby = (m.cfg.SelinuxLabel == "" || !selinux.GetEnabled()) && !userns.RunningInUserNS() && !m.cfg.HostNetwork
	if m.vmm, m.origin, err = starter.start(m.cfg.TemplateDir); err != nil {
		return m.bootError(err)
	}
	switch {
	case m.origin.taken != nil:
		m.log.Debug("took a standby VM", "keeper", m.origin.taken.Keeper, "key", m.origin.template, "after", time.Since(m.began).Round(time.Millisecond))
	case m.origin.template != "":
		m.log.Debug("restored from template", "key", m.origin.template, "after", time.Since(m.began).Round(time.Millisecond))
	default:
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
	if err := runHooks("createContainer", m.cfg.Plan.Binds[0].Source, m.cfg.Hooks, m.cfg.State); err != nil {
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
// of the container's processes on the host, and takes huge pages away.
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
		disableHugePages(m.log)
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

// disableHugePages is for this process and its children (prctl(2)). An emulating
// QEMU asks for huge pages for its translations and some of its tables, and fills
// few of them: 3 MiB of a VM for nothing.
func disableHugePages(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		log.Debug("huge pages stay on", "error", err)
	}
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
		return partError("set the host name", unix.Sethostname([]byte(guest.Hostname)))
	}
	name, err := os.Hostname()
	guest.Hostname = name
	return partError("read the host name", err)
}

// openStdio decides what the container init's stdio is on the host.
func (m *monitor) openStdio() error {
	proc := m.cfg.Plan.Guest.Process
	if proc == nil || !proc.Terminal {
		m.stdio = pipes(os.Stdin, os.Stdout, os.Stderr)
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
	networked := m.setUpNetwork()
	clockSet := m.setClock()
	m.net.parameters(m.cfg.Plan.Guest.Linux)
	req := guestproto.CreateRequest{ID: m.cfg.ID, Spec: m.cfg.Plan.Guest, DeviceFilter: m.cfg.Plan.DeviceFilter, Seccomp: m.cfg.Plan.Seccomp, NullStdin: m.stdio.Stdin == nil}
	err := m.guest.create(req, m.steps, bootTimeout(m.cfg.Accel))
	netErr := <-networked // whatever has become of the container: nobody else may have the network meanwhile
	if err != nil {
		return m.bootError(err)
	}
	if netErr != nil {
		return netErr
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

// setUpNetwork gives the guest the interfaces that the container's network
// namespace has already, beside what follows.
func (m *monitor) setUpNetwork() <-chan error {
	done := make(chan error, 1)
	setUp := m.steps.Begin("set up the network")
	go func() {
		defer setUp()
		wanted, err := m.net.plug(m.vmm, m.guest)
		if err == nil && m.net.news(wanted) != nil {
			if err = m.guest.call(guestproto.OpNetwork, wanted, nil, within(requestTimeout)); err == nil {
				m.net.told = wanted
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
	if !errors.Is(err, ErrVMLost) && !errors.Is(err, errNoAnswer) {
		return err
	}
	hint := ""
	if m.cfg.Accel == accel.KVM && !errors.Is(err, ErrVMLost) {
		hint = " (if no kernel runs under this machine's KVM: --accel tcg)"
	}
	said := ""
	if m.vmm != nil {
		said = m.vmm.lastWords()
		if !errors.Is(err, ErrVMLost) {
			said += m.vmm.stuckTasks()
		}
	}
	return fmt.Errorf("start the VM (%s): %w%s%s", m.cfg.Accel, err, hint, said)
}
