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
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"boxlite/internal/guestproto"
	"boxlite/libvm/accel"
	"boxlite/libvm/hostcgroup"
	"boxlite/libvm/parts"
)

// CreateOptions are what a caller of create says beside the id.
type CreateOptions struct {
	// Bundle is the absolute path of the directory with config.json.
	Bundle string
	// PidFile, if not empty, receives the monitor's pid as its last act.
	PidFile string
	// ConsoleSocket is the socket that a terminal's master goes to; it must be
	// set if and only if config.json asks for a terminal.
	ConsoleSocket string
	// Stdio is what the container's process has for stdin, stdout and stderr.
	// Nil files are /dev/null.
	Stdio Stdio
}

// Create makes a container up to the point before the exec of its process: its
// VM runs, and everything that can be wrong with it has been found. The caller
// calls Start or Delete next. A failed Create leaves nothing behind.
func (r *Runtime) Create(id string, opts CreateOptions) (_ *Container, err error) {
	planned := r.Trace.Begin("create: read and rewrite config.json")
	spec, err := LoadSpec(opts.Bundle)
	if err != nil {
		return nil, err
	}
	leaveHostNetwork(spec)
	rootfs, err := rootfsOf(spec, opts.Bundle)
	if err != nil {
		return nil, err
	}
	terminal := spec.Process != nil && spec.Process.Terminal
	if terminal != (opts.ConsoleSocket != "") {
		if terminal {
			return nil, errors.New("cannot allocate tty if runc will detach without setting console socket")
		}
		return nil, errors.New("cannot use console socket if runc will not detach or allocate tty")
	}
	facts, err := hostFacts(spec, opts.Bundle)
	if err != nil {
		return nil, err
	}
	plan, err := Rewrite(spec, rootfs, facts, r.Overrides)
	if err != nil {
		return nil, err
	}
	planned()
	if err := checkNamespaces(spec); err != nil {
		return nil, err
	}
	found, kernel, err := r.findParts(plan.Shape)
	if err != nil {
		return nil, err
	}
	acc, accelReason, err := accel.Resolve(r.Accel)
	if err != nil {
		return nil, err
	}
	r.Log.Debug("decided", "id", id, "kernel", plan.Shape.Kernel, "because", plan.Shape.KernelReason, "privileged", plan.Shape.Privileged,
		"accel", acc, "accelBecause", accelReason, "memoryMiB", plan.Shape.MemoryMiB, "vcpus", plan.Shape.VCPUs)
	templates, err := r.templatesFor(spec)
	if err != nil {
		return nil, err
	}
	dir, unlock, err := r.makeStateDir(id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	netns, hasNet := networkNamespace(spec)
	c := &Container{dir: dir, rt: r, State: State{
		OCIVersion: spec.Version, ID: id, Bundle: opts.Bundle, Rootfs: rootfs, Created: time.Now().UTC(), Owner: owner(), Spec: spec,
		Kernel: string(plan.Shape.Kernel), KernelReason: plan.Shape.KernelReason, Accel: acc.String(), Privileged: plan.Shape.Privileged,
		MemoryMiB: plan.Shape.MemoryMiB, VCPUs: plan.Shape.VCPUs, NetNS: netns.Path,
		OwnUserNS: os.Geteuid() != 0,
	}}
	fresh, _ := hostNamespaces(spec)
	b := &birth{c: c, plan: plan, opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.undo())
		}
	}()
	b.cfg = monitorConfig{
		ID: id, StateDir: dir, Plan: plan, Parts: found, Kernel: kernel, Accel: acc, Debug: r.Debug, Trace: r.Trace != nil, TemplateDir: templates,
		ConsoleSocket: opts.ConsoleSocket, OwnNetNS: hasNet && netns.Path == "", HostNetwork: !hasNet,
		Sandbox: sandboxOf(spec), OwnUTS: fresh&unix.CLONE_NEWUTS != 0,
		Hooks: hooksOf(spec).CreateContainer,
	}
	if spec.Process != nil {
		b.cfg.SelinuxLabel, b.cfg.OOMScoreAdj = spec.Process.SelinuxLabel, spec.Process.OOMScoreAdj
	}
	if spec.Linux != nil {
		b.cfg.MountLabel = spec.Linux.MountLabel
	}
	if acc == accel.TCG {
		defer r.awaitTurn()()
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	// Only now: podman reads a failed create's log as one single message.
	for _, w := range plan.Warnings {
		r.Log.Warn(w, "id", id)
	}
	c.monitor = b.monitor
	return c, nil
}

// findParts finds the VM's parts: those that flags name before those that
// config.json names before the installed ones.
func (r *Runtime) findParts(shape Shape) (found *parts.Parts, kernel string, err error) {
	options := r.Parts
	if options.QEMU == "" {
		options.QEMU = shape.Machine.QEMU
	}
	if found, err = parts.Find(options); err != nil {
		return nil, "", err
	}
	if kernel = shape.Machine.Kernel; kernel == "" {
		kernel, err = found.Kernel(shape.Kernel)
		return found, kernel, err
	}
	if st, err := os.Stat(kernel); err != nil || !st.Mode().IsRegular() {
		return nil, "", fmt.Errorf("vm.kernel.path: %s is no file that can be read", kernel)
	}
	return found, kernel, nil
}

// rootfsOf is the absolute path of root.path, which must be a directory.
func rootfsOf(spec *specs.Spec, bundle string) (string, error) {
	rootfs := spec.Root.Path
	if !filepath.IsAbs(rootfs) {
		rootfs = filepath.Join(bundle, rootfs)
	}
	rootfs, err := filepath.EvalSymlinks(rootfs)
	if err != nil {
		return "", fmt.Errorf("rootfs: %w", err)
	}
	st, err := os.Stat(rootfs)
	if err != nil {
		return "", fmt.Errorf("rootfs: %w", err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("rootfs: %s is not a directory", rootfs)
	}
	return rootfs, nil
}

// birth is a container being made: what there is to undo if it fails.
type birth struct {
	c       *Container
	plan    *Plan
	opts    CreateOptions
	cfg     monitorConfig
	cgroup  *hostcgroup.Cgroup
	monitor *exec.Cmd
	sync    *net.UnixConn
}

// run is the creator's side of the sequence drawn at RunMonitor.
func (b *birth) run() error {
	spec, steps := b.c.Spec, b.c.rt.Trace
	started := steps.Begin("create: start the monitor")
	err := b.startMonitor()
	started()
	if err != nil {
		return err
	}
	pid := b.monitor.Process.Pid
	st, err := statProcess(pid)
	if err != nil {
		return partError("look at the monitor", err)
	}
	b.c.Pid, b.c.PidStart = pid, st.start
	entered := steps.Begin("create: make the cgroup")
	err = b.enterCgroup()
	entered()
	if err != nil {
		return err
	}
	b.cfg.State = b.c.ociState(specs.StateCreated)
	if err := guestproto.WriteFrame(b.sync, b.cfg); err != nil {
		return partError("configure the monitor", err)
	}
	hooks, hooked := hooksOf(spec), steps.Begin("create: hooks")
	//lint:ignore SA1019 deprecated in the spec, but what docker uses
	err = runHooks("prestart", b.c.Bundle, hooks.Prestart, b.cfg.State)
	if err == nil {
		err = runHooks("createRuntime", b.c.Bundle, hooks.CreateRuntime, b.cfg.State)
	}
	if err != nil {
		return cmp.Or(b.reasonForEnd(), err)
	}
	hooked()
	// A failure of this write shows as the end of the monitor in the next read,
	// which has its reason.
	_ = guestproto.WriteFrame(b.sync, monitorEvent{Event: eventHooksDone})
	awaited := steps.Begin("create: await the monitor")
	err = b.awaitReady()
	awaited()
	if err != nil {
		return err
	}
	defer steps.Begin("create: write state and pid file")()
	if err := writeState(b.c.dir, stateFile, &b.c.State); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(b.c.dir, birthFile)); err != nil {
		return err
	}
	if b.opts.PidFile != "" {
		if err := replaceFile(b.opts.PidFile, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("pid file: %w", err)
		}
	}
	if err := guestproto.WriteFrame(b.sync, monitorEvent{Event: eventCommitted}); err != nil {
		return partError("the monitor has ended", err)
	}
	return b.sync.Close()
}

// startMonitor starts the monitor, which waits for its configuration.
func (b *birth) startMonitor() error {
	var theirs *os.File
	var err error
	if b.sync, theirs, err = Socketpair(); err != nil {
		return partError("socket to the monitor", err)
	}
	var shown []string
	if p := b.c.Spec.Process; p != nil {
		shown = p.Args
	}
	cmd, err := selfCommand(b.c.rt.SelfArgs, shown, "monitor", b.c.ID)
	if err != nil {
		return errors.Join(err, theirs.Close())
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = file(b.opts.Stdio.Stdin), file(b.opts.Stdio.Stdout), file(b.opts.Stdio.Stderr)
	cmd.ExtraFiles = []*os.File{theirs}
	mounts, err := sharedMounts(b.c.Spec)
	if err != nil {
		return errors.Join(err, theirs.Close())
	}
	if mounts != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, mounts)
		b.cfg.SharedMountsFD = 3 + len(cmd.ExtraFiles) - 1
		defer mounts.Close()
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	fresh, join := hostNamespaces(b.c.Spec)
	switch {
	case b.c.OwnUserNS:
		fresh |= becomeRoot(cmd.SysProcAttr)
	case fresh&unix.CLONE_NEWUSER != 0:
		if err := mapIdentity(cmd.SysProcAttr); err != nil {
			return errors.Join(err, theirs.Close())
		}
	}
	if err := startIn(cmd, fresh, join); err != nil {
		return errors.Join(err, theirs.Close())
	}
	b.monitor = cmd
	if adj := b.cfg.OOMScoreAdj; adj != nil && fresh&unix.CLONE_NEWUSER != 0 && !b.c.OwnUserNS && !userns.RunningInUserNS() {
		// The monitor in its user namespace may only raise its score, the host's root may lower it too.
		if err := setOOMScore(cmd.Process.Pid, *adj); err != nil {
			return errors.Join(err, theirs.Close())
		}
		b.cfg.OOMScoreAdj = nil
	}
	return theirs.Close()
}

func setOOMScore(pid, score int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0); err != nil {
		return partError(fmt.Sprintf("set oom_score_adj %d", score), err)
	}
	return nil
}

// file keeps a nil *os.File from becoming a reader that is not nil.
func file(f *os.File) interface {
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
	if b.c.rt.NoCgroup {
		return writeState(b.c.dir, birthFile, &b.c.State)
	}
	cg, err := hostcgroup.New(hostcgroup.Config{
		Path: cgroupsPath(b.c.Spec), ID: b.c.ID, Systemd: b.c.rt.SystemdCgroup, Rootless: os.Geteuid() != 0,
	})
	if err != nil {
		return cgroupError(err)
	}
	b.cgroup = cg
	if err := b.record(); err != nil {
		return err
	}
	if err := cg.Apply(b.monitor.Process.Pid); err != nil {
		return cgroupError(err)
	}
	if err := cg.Set(resourcesOf(b.c.Spec), overhead(b.plan.Shape)); err != nil {
		return cgroupError(err)
	}
	b.cfg.MemoryCgroup = cg.MemoryDir()
	return b.record()
}

// record notes what there is so far, for a delete --force after a create that
// was killed.
func (b *birth) record() error {
	state := b.cgroup.State()
	b.c.Cgroup = &state
	return writeState(b.c.dir, birthFile, &b.c.State)
}

// cgroupError keeps the file's name, which partError would lose.
func cgroupError(err error) error { return errors.New("cgroup: " + quiet(err.Error())) }

func cgroupsPath(spec *specs.Spec) string {
	if spec.Linux == nil {
		return ""
	}
	return spec.Linux.CgroupsPath
}

func resourcesOf(spec *specs.Spec) *specs.LinuxResources {
	if spec.Linux == nil {
		return nil
	}
	return spec.Linux.Resources
}

// What QEMU, virtiofsd and the monitor need beside the guest's memory and the
// container's processes: measured at rest 64 MiB and 30 threads, and room for
// the host's page cache and QEMU's I/O threads under load.
const (
	overheadMiB  = 256
	overheadPids = 256
)

// overhead is what the VM adds to the container's limits on the host. The guest
// holds the container to the exact ones.
func overhead(s Shape) hostcgroup.Overhead {
	return hostcgroup.Overhead{MemoryBytes: int64(guestRoomMiB+overheadMiB) << 20, Pids: overheadPids}
}

// awaitReady reads the monitor's answer. A monitor that ends without one died
// of something it could not report.
func (b *birth) awaitReady() error {
	var ev monitorEvent
	if err := guestproto.ReadFrame(b.sync, guestproto.MaxReply, &ev); err != nil {
		return fmt.Errorf("the monitor ended before the container was ready%s", consoleTail(b.c.dir))
	}
	if ev.Event == eventAdopted {
		if err := b.adopt(ev.Adopted); err != nil {
			return err
		}
		return b.awaitReady()
	}
	if ev.Event == eventReady {
		b.c.rt.Trace.Add("monitor", 0, ev.Trace)
		b.c.Template = ev.Template
		if ev.Warning != "" {
			b.plan.Warnings = append(b.plan.Warnings, ev.Warning)
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
func (b *birth) adopt(vm *handover) error {
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", b.monitor.Process.Pid))
	if err != nil {
		return partError("read the monitor's oom_score_adj", err)
	}
	pids, err := childrenOf(vm.Keeper)
	if err != nil {
		return partError("look for a standby VM's QEMU", err)
	}
	for _, pid := range append(pids, vm.Keeper) {
		if b.cgroup != nil {
			if err := b.cgroup.Apply(pid); err != nil {
				return cgroupError(err)
			}
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), score, 0); err != nil {
			b.plan.warnf("oom_score_adj of the VM stays what it was while it stood by: %v", err)
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
	return fmt.Sprintf(" (guest console: %q)", guestText(said))
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

// awaitTurn is for a VM that is emulated. What keeps it from its turn is no error:
// the VM starts all the same.
func (r *Runtime) awaitTurn() (release func()) {
	defer r.Trace.Begin("create: wait for a turn")()
	release, err := takeTurn(r.TurnFile, runtime.NumCPU(), turnPatience)
	if err != nil {
		r.Log.Debug("started out of turn", "because", err)
		return func() {}
	}
	time.AfterFunc(turnLimit, release)
	return release
}
