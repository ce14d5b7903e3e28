package libvm

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/lockdown"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
)

// joinedPod is the pod that a container being made is to be a member of.
type joinedPod struct {
	sandbox *Container
	joins   map[specs.LinuxNamespaceType]string // see plan.Pod
}

// findPod finds the pod that config.json names, or nil for a container with a VM of its
// own. A container that names a sandbox, but has another network, shares nothing that
// would need the same VM.
func (r *Runtime) findPod(id string, spec *specs.Spec) (*joinedPod, error) {
	name := plan.Sandbox(spec)
	if name == "" || name == id {
		return nil, nil
	}
	sandbox, err := r.Load(name)
	switch {
	case errors.Is(err, ErrNotExist):
		return nil, fmt.Errorf("the pod's sandbox, %s, is not a container of boxlite's below %s", name, r.Root)
	case err != nil:
		return nil, fmt.Errorf("the pod's sandbox: %w", err)
	case sandbox.Status() == specs.StateStopped:
		return nil, fmt.Errorf("the pod's sandbox, %s, has stopped", name)
	}
	if same, err := sandbox.hasNetworkOf(spec); !same || err != nil {
		return nil, err
	}
	switch {
	case sandbox.Sandbox != nil:
		return nil, fmt.Errorf("the pod's sandbox, %s, is itself a member of a pod", name)
	case sandbox.OwnUserNS, os.Geteuid() != 0:
		return nil, errors.New("a pod needs root, be it that of a user namespace: podman unshare gives one")
	}
	p := &joinedPod{sandbox: sandbox, joins: map[specs.LinuxNamespaceType]string{}}
	return p, p.findJoins(spec)
}

// lookAround finds what the cgroup around a pod's sandbox may use, if that is what the
// container is. Kubelet limits a pod if all of its members have limits.
func (b *birth) lookAround(id string, facts *plan.HostFacts) error {
	if b.rt.NoCgroup || plan.Sandbox(b.spec) != id {
		return nil
	}
	cgroup, err := hostcgroup.New(b.cgroupConfig(id))
	if err != nil {
		return cgroupError(err)
	}
	if facts.PodMemoryLimit, err = cgroup.MemoryLimitAround(); err != nil {
		return err
	}
	facts.PodCPUs, err = cgroup.ProcessorsAround()
	return err
}

// hasNetworkOf says whether another container's network is that of c, which runs.
func (c *Container) hasNetworkOf(spec *specs.Spec) (bool, error) {
	ns, ok := networkNamespace(spec)
	_, own := networkNamespace(c.Spec)
	if !ok || !own || ns.Path == "" {
		return ok == own && !ok, nil // both have the host's
	}
	return c.isIn(ns)
}

// isIn says whether the container's stand-in is in a namespace.
func (c *Container) isIn(ns specs.LinuxNamespace) (bool, error) {
	there, err := os.Stat(ns.Path)
	if err != nil {
		return false, fmt.Errorf("%s namespace: %w", ns.Type, err)
	}
	here, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", c.Pid, namespaceFiles[ns.Type]))
	return err == nil && os.SameFile(here, there), nil
}

// findJoins finds whose the namespaces are that the spec names.
func (p *joinedPod) findJoins(spec *specs.Spec) error {
	if spec.Linux == nil {
		return nil
	}
	all, err := p.sandbox.rt.List()
	if err != nil {
		return err
	}
	for _, ns := range spec.Linux.Namespaces {
		switch ns.Type {
		case specs.IPCNamespace, specs.PIDNamespace, specs.UTSNamespace:
		default:
			continue
		}
		if ns.Path == "" {
			continue
		}
		for _, c := range all {
			if c.ID != p.sandbox.ID && !c.isMemberOf(p.sandbox) || c.Status() == specs.StateStopped {
				continue
			}
			in, err := c.isIn(ns)
			if err != nil {
				return err
			}
			if _, found := p.joins[ns.Type]; in && (!found || c.Sandbox == nil) { // the sandbox lives longest
				p.joins[ns.Type] = c.member()
			}
		}
	}
	return nil
}

// isMemberOf says whether c lives in that sandbox's VM.
func (c *Container) isMemberOf(sandbox *Container) bool {
	return c.Sandbox != nil && *c.Sandbox == Sandbox{sandbox.ID, sandbox.Pid, sandbox.PidStart}
}

func (p *joinedPod) facts(id string) *plan.Pod {
	return &plan.Pod{Sandbox: p.sandbox.ID, Member: id, Shape: p.sandbox.Shape, Joins: p.joins}
}

func (p *joinedPod) ref() *Sandbox {
	return &Sandbox{ID: p.sandbox.ID, Pid: p.sandbox.Pid, PidStart: p.sandbox.PidStart}
}

// attachTree gives virtiofsd the mounts that the stand-in sends: the member's own, and
// those of the pod's volumes that no other member has brought.
func (b *birth) attachTree() error {
	unlock, err := lock(b.c.monitorDir()) // against the removal of a member that has the same volumes, and other limits
	if err != nil {
		return fmt.Errorf("the pod's sandbox: %w", err)
	}
	defer unlock()
	if err := b.c.makeRoom(b.c.MemoryMiB); err != nil {
		return fmt.Errorf("the pod's sandbox: %w", err)
	}
	share, err := b.c.runningShare()
	if err != nil {
		return err
	}
	defer share.Server.Close()
	own := guestproto.MemberName(b.c.ID)
	if err := errors.Join(share.Detach(own), b.attach(share, own)); err != nil { // a removal that failed may have left something
		return fault.Wrap("give the pod's VM the member's files", err)
	}
	for _, volume := range b.c.Volumes {
		if err := b.attach(share, guestproto.VolumeName(volume)); err != nil && !errors.Is(err, unix.EXDEV) {
			return fault.Wrap("give the pod's VM a volume", err)
		}
	}
	_ = guestproto.WriteFrame(b.sync, monitorEvent{Event: eventAttached}) // a stand-in that has gone shows in the next read
	return nil
}

// attach gives virtiofsd the next mount that the stand-in sends.
func (b *birth) attach(share rootfs.RunningShare, name string) error {
	files, err := fdpass.Receive(b.sync)
	if err != nil {
		return err
	}
	defer fdpass.CloseAll(files)
	if len(files) != 1 {
		return fmt.Errorf("the stand-in sent %d mounts, not 1", len(files))
	}
	return share.Attach(name, files[0])
}

// runningShare asks the monitor of the pod's sandbox for what its virtiofsd serves. The
// caller closes the server.
func (c *Container) runningShare() (share rootfs.RunningShare, err error) {
	conn, reply, err := c.dial(controlRequest{Op: controlShare})
	if err != nil {
		return share, fmt.Errorf("the pod's sandbox: %w", err)
	}
	defer conn.Close()
	files, err := fdpass.Receive(conn)
	if err == nil && (len(files) != 1 || reply.Share == nil) {
		fdpass.CloseAll(files)
		err = errors.New("malformed answer")
	}
	if err != nil {
		return share, fault.Wrap("the pod's sandbox: share", err)
	}
	return rootfs.RunningShare{Server: files[0], Identity: *reply.Share}, nil
}

// leavePod takes away what the VM of the pod has of a member whose stand-in has ended. It
// does not fail: a sandbox that cannot be asked takes all with it when it ends.
func (c *Container) leavePod() {
	err := c.leave()
	if err != nil && !errors.Is(err, ErrNotRunning) && alive(c.Sandbox.Pid, c.Sandbox.PidStart) {
		c.rt.Log.Warn("what the VM of the pod has of the container stays there", "id", c.ID, "error", fault.Quiet(err.Error()))
	}
}

func (c *Container) leave() error {
	unlock, err := lock(c.monitorDir()) // against the creation of a member with the same volumes
	if err != nil {
		return ErrNotRunning
	}
	defer unlock()
	share, err := c.runningShare()
	if err != nil {
		return err
	}
	defer share.Server.Close()
	volumes, err := c.lastVolumes()
	names := []string{guestproto.MemberName(c.ID)}
	for _, volume := range volumes {
		names = append(names, guestproto.VolumeName(volume))
	}
	for _, name := range names {
		err = errors.Join(err, share.Detach(name))
	}
	err = errors.Join(err, c.request(controlRequest{Op: controlRelease, Volumes: volumes}))
	for _, name := range names {
		err = errors.Join(err, share.Remove(name)) // the guest has, if all is well
	}
	return err
}

// otherMembers are those of the pod that c is in, or has as its sandbox, be they being made,
// without c.
func (c *Container) otherMembers() (members []*State, err error) {
	sandbox := Sandbox{c.ID, c.Pid, c.PidStart}
	if c.Sandbox != nil {
		sandbox = *c.Sandbox
	}
	entries, err := os.ReadDir(c.rt.Root)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		for _, name := range []string{stateFile, birthFile} {
			state, err := readState(filepath.Join(c.rt.Root, e.Name()), name)
			if err == nil && state.ID != c.ID && state.Sandbox != nil && *state.Sandbox == sandbox {
				members = append(members, state)
				break
			}
		}
	}
	return members, nil
}

// othersMiB is what the VM has for these.
func (c *Container) othersMiB() (sum int, err error) {
	others, err := c.otherMembers()
	for _, other := range others {
		sum += other.MemoryMiB
	}
	return sum, err
}

// makeRoom raises the sandbox's limit of memory on the host, where the VM is in the sandbox's
// cgroup, so that a member may use needMiB.
func (c *Container) makeRoom(needMiB int) error {
	sandbox, err := c.rt.Load(c.Sandbox.ID)
	if err != nil {
		return err
	}
	limits := sandbox.resources()
	if plan.MemoryLimit(limits) <= 0 {
		return nil
	}
	others, err := c.othersMiB()
	if err != nil {
		return err
	}
	return sandbox.limitHost(&specs.LinuxResources{Memory: limits.Memory}, sandbox.MemoryMiB+others+needMiB)
}

// roomInPod is makeRoom for a member. For a sandbox it is what the members need beside it.
func (c *Container) roomInPod(needMiB int) (othersMiB int, err error) {
	if c.Sandbox == nil {
		return c.othersMiB()
	}
	unlock, err := lock(c.monitorDir())
	if err != nil {
		return 0, err
	}
	defer unlock()
	return 0, c.makeRoom(needMiB)
}

// lastVolumes are those of a member's volumes that no other member of the pod has, be it
// one that is being made.
func (c *Container) lastVolumes() (last []string, err error) {
	if len(c.Volumes) == 0 {
		return nil, nil
	}
	others, err := c.otherMembers()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, other := range others {
		for _, volume := range other.Volumes {
			used[volume] = true
		}
	}
	for _, volume := range c.Volumes {
		if !used[volume] {
			last = append(last, volume)
		}
	}
	return last, nil
}

// RunMember does the work of the process that stands for a pod's member, which create
// starts where it starts a monitor otherwise:
//
//	create                                       stand-in
//	 |-- monitorConfig ---------------------------->|  binds the member's files together
//	 |<-------------------- tree, with mounts ------|
//	 |-- hooks-done ------------------------------->|
//	 |-- attached --------------------------------->|  joins, at the sandbox's monitor
//	 |<----------------------- ready or failed -----|  the guest holds the container
//	 |-- committed -------------------------------->|  from here on it lives by itself
//
// It returns the status that the process shall exit with, which is the container init's.
func RunMember(sync *net.UnixConn, log *slog.Logger) int {
	m := newMonitor(log)
	signals := catchSignals()
	loadTimeZone()
	x, err := m.standIn(sync)
	if err != nil {
		m.log.Debug("create failed", "error", err)
		_ = guestproto.WriteFrame(sync, monitorEvent{Event: eventFailed, Error: toControlError(err)}) // create may have gone
		return 1
	}
	defer x.conn.Close()
	if err := m.commit(sync); err != nil {
		m.log.Warn("create went away before the container was registered", "error", err)
		return 1
	}
	end, err := x.wait(signals)
	m.log.Debug("the container has ended", "code", end.Code, "signal", end.Signal, "oom", end.OOMKilled, "error", err)
	if bell := m.own.oom.bell; end.OOMKilled && bell != nil {
		if err := bell.Ring(); err != nil {
			m.log.Debug("lack of memory in the guest does not show on the host", "error", err)
		}
	}
	return end.Shell()
}

// standIn makes the calling process what stands for a member, and has the sandbox's
// monitor make the member.
func (m *monitor) standIn(sync *net.UnixConn) (x *execSession, err error) {
	if err := guestproto.ReadFrame(sync, guestproto.MaxRequest, &m.cfg); err != nil {
		return nil, fmt.Errorf("member: read configuration: %w", err)
	}
	m.steps, m.log = recorder(m.cfg.Trace), m.log.With("id", m.cfg.ID)
	var joined atomic.Pointer[net.UnixConn]
	c := &creation{monitor: m, sync: sync, share: filepath.Join(m.cfg.StateDir, shareDir), gone: func(paths []string) {
		if conn := joined.Load(); conn != nil { // before that the guest knows of none
			_ = guestproto.WriteFrame(conn, execMessage{Gone: paths}) // an ended connection shows in wait
		}
	}}
	for _, step := range []func() error{c.prepareProcess, c.buildShare, c.sendTree, c.openStdio} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	m.own.openOOMBell(m.cfg.MemoryCgroup)
	conn, err := connectControl(m.cfg.PodDir)
	if err != nil {
		return nil, fmt.Errorf("the pod's sandbox: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	if err := c.enter(); err != nil {
		return nil, err
	}
	if x, err = c.join(conn); err != nil {
		return nil, err
	}
	joined.Store(conn)
	defer m.steps.Begin("give up privileges")()
	return x, fault.Wrap("give up privileges", lockdown.Enter())
}

// sendTree hands the member's files to create, who can show them to the VM, and those of
// each of its volumes.
func (c *creation) sendTree() error {
	if err := guestproto.WriteFrame(c.sync, monitorEvent{Event: eventTree}); err != nil {
		return err
	}
	err := c.sendCopy("")
	for _, b := range c.cfg.Plan.Binds {
		if b.Volume != "" {
			err = errors.Join(err, c.sendCopy(b.Name))
		}
	}
	return fault.Wrap("send the member's mounts", err)
}

func (c *creation) sendCopy(name string) error {
	tree, err := rootfs.CopyTree(filepath.Join(c.share, name))
	if err != nil {
		return err
	}
	return errors.Join(fdpass.Send(c.sync, tree), tree.Close())
}

// join has the sandbox's monitor make the member, once its files are in the share.
func (c *creation) join(conn *net.UnixConn) (*execSession, error) {
	var ev monitorEvent
	if err := guestproto.ReadFrame(c.sync, guestproto.MaxReply, &ev); err != nil || ev.Event != eventAttached {
		return nil, errors.Join(errors.New("create went away"), err)
	}
	p := c.cfg.Plan
	req := controlRequest{Op: controlJoin, Member: c.cfg.ID, Trace: c.cfg.Trace, Join: &joinParams{
		Create: guestproto.CreateRequest{
			ID: c.cfg.ID, Spec: p.Guest, DeviceFilter: p.DeviceFilter, Seccomp: p.Seccomp, Submounts: p.Submounts(), Joins: p.Joins,
			PlainNewlines: c.cfg.PlainNewlines, OOMScoreFloor: p.OOMScoreFloor,
		},
		State: c.cfg.State, MemoryMiB: p.Shape.MemoryMiB,
	}}
	stdio, tty := Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}, (*os.File)(nil)
	if p.Guest.Process.Terminal {
		stdio, tty = c.own.stdio, c.own.stdio.Stdin
	}
	files := handedOver(stdio, tty)
	root, err := openRoot() // the member's: by it the monitor watches files
	if err != nil {
		return nil, err
	}
	defer root.Close()
	joined := c.steps.Begin("have the pod's VM make the container")
	reply, err := askControl(conn, req, append(slices.Clip(files), root)...)
	joined()
	if err != nil {
		return nil, err
	}
	c.steps.Add("the sandbox's monitor", 0, reply.Trace)
	if tty == nil {
		_ = os.Stderr.Close() // nothing is said here any more
	}
	return newExecSession(conn, tty, files), nil
}
