package libvm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/guesttext"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/self"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// birth is a container being made: what was decided, and what there is to undo if it
// fails.
type birth struct {
	rt     *Runtime
	spec   *specs.Spec
	opts   CreateOptions
	rootfs string
	pod    *joinedPod // nil for a container with a VM of its own

	cfg     monitorConfig // what was decided, as the monitor is told of it
	c       *Container
	cgroup  *hostcgroup.Cgroup
	monitor *exec.Cmd
	sync    *net.UnixConn
}

// run is the creator's side of the sequence drawn at RunMonitor.
func (b *birth) run() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"create: start the monitor", b.startMonitor},
		{"create: make the cgroup", b.enterCgroup},
		{"create: hooks", b.configureAndHook},
		{"create: await the monitor", b.awaitReady},
		{"create: write state and pid file", b.commit},
	} {
		done := b.rt.Trace.Begin(step.name)
		err := step.do()
		done()
		if err != nil {
			return err
		}
	}
	return nil
}

// configureAndHook tells the monitor what to do, and runs the hooks of the runtime's
// namespace beside that.
func (b *birth) configureAndHook() error {
	b.cfg.State = b.c.ociState(specs.StateCreated)
	if err := guestproto.WriteFrame(b.sync, b.cfg); err != nil {
		return fault.Wrap("configure the monitor", err)
	}
	hooks := plan.Hooks(b.spec)
	//lint:ignore SA1019 deprecated in the spec, but what docker uses
	err := runHooks("prestart", b.c.Bundle, hooks.Prestart, b.cfg.State)
	if err == nil {
		err = runHooks("createRuntime", b.c.Bundle, hooks.CreateRuntime, b.cfg.State)
	}
	if err != nil {
		return cmp.Or(b.reasonForEnd(), err)
	}
	// A failure of this write shows as the end of the monitor in the next read,
	// which has its reason.
	_ = guestproto.WriteFrame(b.sync, monitorEvent{Event: eventHooksDone})
	return nil
}

// commit writes down that the container is there, and lets go of the monitor. The pid
// file goes with a container that fails after it was written.
func (b *birth) commit() error {
	if err := writeState(b.c.dir, stateFile, &b.c.State); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(b.c.dir, birthFile)); err != nil {
		return err
	}
	if b.opts.PidFile != "" {
		if err := replaceFile(b.opts.PidFile, []byte(strconv.Itoa(b.c.Pid)), 0o644); err != nil {
			return fmt.Errorf("pid file: %w", err)
		}
	}
	if err := guestproto.WriteFrame(b.sync, monitorEvent{Event: eventCommitted}); err != nil {
		err = fault.Wrap("the monitor has ended", err)
		if b.opts.PidFile != "" {
			err = errors.Join(err, os.Remove(b.opts.PidFile))
		}
		return err
	}
	return b.sync.Close()
}

// startMonitor starts the monitor, which waits for its configuration.
func (b *birth) startMonitor() error {
	conn, theirs, err := fdpass.Socketpair()
	if err != nil {
		return fault.Wrap("socket to the monitor", err)
	}
	defer theirs.Close() // the child has its own
	b.sync = conn
	mounts, err := sharedMounts(b.spec)
	if err != nil {
		return err
	}
	if mounts != nil {
		defer mounts.Close()
	}
	cmd, err := b.monitorCommand(theirs, mounts)
	if err != nil {
		return err
	}
	fresh, join := hostNamespaces(b.spec)
	if fresh, err = b.userNamespace(cmd.SysProcAttr, fresh); err != nil {
		return err
	}
	if err := startIn(cmd, fresh, join); err != nil {
		return err
	}
	b.monitor = cmd
	st, err := statProcess(cmd.Process.Pid)
	if err != nil {
		return fault.Wrap("look at the monitor", err)
	}
	b.c.Pid, b.c.PidStart = cmd.Process.Pid, st.start
	return b.setMonitorOOMScore(fresh&unix.CLONE_NEWUSER != 0)
}

// monitorCommand is the monitor, which stands for the container's process wherever
// the host's pids are looked at. The mount namespace that it joins may be nil.
func (b *birth) monitorCommand(sync, mounts *os.File) (*exec.Cmd, error) {
	var shown []string
	if p := b.spec.Process; p != nil {
		shown = p.Args
	}
	command := "monitor"
	if b.pod != nil {
		command = "member"
	}
	cmd, err := self.Command(b.rt.SelfArgs, shown, command, b.c.ID)
	if err != nil {
		return nil, err
	}
	stdio := b.opts.Stdio
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdioOf(stdio.Stdin), stdioOf(stdio.Stdout), stdioOf(stdio.Stderr)
	cmd.ExtraFiles = []*os.File{sync}
	if mounts != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, mounts)
		b.cfg.SharedMountsFD = 3 + len(cmd.ExtraFiles) - 1
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// userNamespace adds the user namespace that the monitor needs to the fresh ones
// (clone flags), and says who is who in it.
func (b *birth) userNamespace(attr *syscall.SysProcAttr, fresh uintptr) (uintptr, error) {
	switch {
	case b.c.OwnUserNS:
		return fresh | becomeRoot(attr), nil
	case fresh&unix.CLONE_NEWUSER != 0:
		return fresh, mapIdentity(attr)
	}
	return fresh, nil
}

// setMonitorOOMScore is for the host's root and a monitor in a user namespace: that
// one may only raise its score, the host's root may lower it too.
func (b *birth) setMonitorOOMScore(ownUsers bool) error {
	adj := b.cfg.OOMScoreAdj
	if adj == nil || !ownUsers || b.c.OwnUserNS || userns.RunningInUserNS() {
		return nil
	}
	b.cfg.OOMScoreAdj = nil
	return setOOMScore(b.monitor.Process.Pid, *adj)
}

func setOOMScore(pid, score int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0); err != nil {
		return fault.Wrap(fmt.Sprintf("set oom_score_adj %d", score), err)
	}
	return nil
}

// stdioOf keeps a nil *os.File from becoming a reader that is not nil.
func stdioOf(f *os.File) interface {
	io.Reader
	io.Writer
} {
	if f == nil {
		return nil
	}
	return f
}

// enterCgroup puts the monitor into the container's cgroup before it has any
// child.
func (b *birth) enterCgroup() error {
	if b.rt.NoCgroup {
		return writeState(b.c.dir, birthFile, &b.c.State)
	}
	cg, err := hostcgroup.New(b.cgroupConfig(b.c.ID))
	if err != nil {
		return cgroupError(err)
	}
	if err := cg.CheckMoving(); err != nil {
		return cgroupError(err)
	}
	b.cgroup = cg
	if err := b.record(); err != nil {
		return err
	}
	if err := cg.Apply(b.monitor.Process.Pid); err != nil {
		return cgroupError(err)
	}
	if others := cg.Others(); others > 0 { // runc's words
		b.cfg.Plan.Warnf("container's cgroup is not empty: %d process(es) found", others)
	}
	if err := cg.Set(plan.Resources(b.spec), overhead()); err != nil {
		return cgroupError(err)
	}
	b.cfg.MemoryCgroup = cg.MemoryDir()
	return b.record()
}

// cgroupConfig says where the cgroup of the container with that id is to be.
func (b *birth) cgroupConfig(id string) hostcgroup.Config {
	return hostcgroup.Config{Path: plan.CgroupsPath(b.spec), ID: id, Systemd: b.rt.SystemdCgroup, Rootless: os.Geteuid() != 0}
}

// record notes what there is so far, for a delete --force after a create that
// was killed.
func (b *birth) record() error {
	state := b.cgroup.State()
	b.c.Cgroup = &state
	return writeState(b.c.dir, birthFile, &b.c.State)
}

// cgroupError keeps the file's name, which Wrap would lose.
func cgroupError(err error) error { return errors.New("cgroup: " + fault.Quiet(err.Error())) }

// What QEMU, virtiofsd and the monitor need beside the guest's memory and the
// container's processes: measured at rest 64 MiB and 30 threads, and room for
// the host's page cache and QEMU's I/O threads under load.
const (
	overheadMiB  = 256
	overheadPids = 256
)

// overhead is what the VM adds to the container's limits on the host. The guest
// holds the container to the exact ones.
func overhead() hostcgroup.Overhead {
	return hostcgroup.Overhead{MemoryBytes: int64(plan.GuestRoomMiB+overheadMiB) << 20, Pids: overheadPids}
}

// awaitReady reads the monitor's answer. A monitor that ends without one died
// of something it could not report.
func (b *birth) awaitReady() error {
	var ev monitorEvent
	if err := guestproto.ReadFrame(b.sync, guestproto.MaxReply, &ev); err != nil {
		return fmt.Errorf("the monitor ended before the container was ready%s%s", b.monitorKilled(), consoleTail(b.c.dir))
	}
	if ev.Event == eventAdopted {
		if err := b.adopt(ev.Adopted); err != nil {
			return err
		}
		return b.awaitReady()
	}
	if ev.Event == eventTree {
		if err := b.attachTree(); err != nil {
			return err
		}
		return b.awaitReady()
	}
	if ev.Event == eventReady {
		b.rt.Trace.Add("monitor", 0, ev.Trace)
		b.c.Template = ev.Template
		if ev.Warning != "" {
			b.cfg.Plan.Warnings = append(b.cfg.Plan.Warnings, ev.Warning)
		}
		return nil
	}
	err := ev.Error.err()
	if errors.Is(err, ErrVMLost) {
		return fmt.Errorf("%w%s", err, consoleTail(b.c.dir))
	}
	var ge *guestproto.Error
	if errors.As(err, &ge) && ge.Code == guestproto.CodeCommand {
		return fmt.Errorf("runc create failed: unable to start container process: %w", err)
	}
	return err
}

// monitorKilled says so of a monitor that was. The monitor's socket has ended, so the
// monitor ends.
func (b *birth) monitorKilled() string {
	if err := b.c.awaitEnd(); err != nil {
		return ""
	}
	_ = b.monitor.Wait() // its status says more
	status, ok := b.monitor.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != unix.SIGKILL {
		return ""
	}
	return " (killed, " + fault.Killed + ")"
}

// reasonForEnd is what a monitor that has ended gave as its reason, for a hook
// that found nobody in the container's namespaces. It is nil for one that lives.
func (b *birth) reasonForEnd() error {
	if alive(b.c.Pid, b.c.PidStart) {
		return nil
	}
	return b.awaitReady()
}

// adopt makes a standby VM's processes ones of the container's: they join its
// cgroup, and the kernel's choice of what to kill for want of memory is the same.
func (b *birth) adopt(vm *vmm.Handover) error {
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", b.monitor.Process.Pid))
	if err != nil {
		return fault.Wrap("read the monitor's oom_score_adj", err)
	}
	pids, err := childrenOf(vm.Keeper)
	if err != nil {
		return fault.Wrap("look for a standby VM's QEMU", err)
	}
	for _, pid := range append(pids, vm.Keeper) {
		if b.cgroup != nil {
			if err := b.cgroup.Apply(pid); err != nil {
				return cgroupError(err)
			}
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), score, 0); err != nil {
			b.cfg.Plan.Warnf("oom_score_adj of the VM stays what it was while it stood by: %v", err)
		}
	}
	b.c.Keeper = vm.Keeper
	return nil
}

// consoleTail quotes from the guest's console for an error: a panic's reason, or
// else the last line.
func consoleTail(dir string) string {
	raw, err := os.ReadFile(filepath.Join(dir, consoleLog))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	said := lines[len(lines)-1]
	for _, line := range lines {
		if strings.Contains(line, "Kernel panic") {
			said = line
		}
	}
	if said = strings.TrimSpace(said); said == "" {
		return ""
	}
	return fmt.Sprintf(" (guest console: %q)", guesttext.Harmless(said))
}

// undo takes back whatever there is of a container that could not be made.
func (b *birth) undo() error {
	if b.sync != nil {
		_ = b.sync.Close() // tells the monitor; it may be closed already
	}
	if b.monitor != nil {
		_ = b.monitor.Process.Kill()
		_ = b.monitor.Wait() // how it ended is known from what brought us here
	}
	return b.c.remove()
}
