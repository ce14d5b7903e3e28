package libvm

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/kernels"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/turn"
)

// CreateOptions are the arguments of Create other than the id. Bundle and Spec are
// required, the others may be zero.
type CreateOptions struct {
	// Bundle is the absolute path of the directory with config.json.
	Bundle string
	// Spec is the content of the bundle's config.json, as plan.LoadSpec returns it.
	// Create may change it.
	Spec *specs.Spec
	// PidFile, if not empty, is a file for the monitor's pid. It appears by rename
	// when everything else is done. A Create that fails leaves none.
	PidFile string
	// ConsoleSocket is the path of a listening unix socket, which receives the
	// master of the container's terminal. It must be set if config.json asks for a
	// terminal, and must be empty otherwise.
	ConsoleSocket string
	// PlainNewlines has the terminal leave newlines as they are: another one shows
	// them.
	PlainNewlines bool
	// Stdio is what the container's process has for stdin, stdout and stderr.
	// Nil files are /dev/null.
	Stdio Stdio
}

// Create makes a container and returns before the exec of its process: the VM runs,
// and everything that can be wrong with the container has been found. The caller
// calls Start or Delete next. A Create that fails leaves nothing behind. The error
// matches ErrExist or ErrInvalidID if the id is the reason.
func (r *Runtime) Create(id string, opts CreateOptions) (_ *Container, err error) {
	b := &birth{rt: r, spec: opts.Spec, opts: opts}
	if err := b.decide(id); err != nil {
		return nil, err
	}
	unlock, err := b.claim(id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, b.undo())
		}
	}()
	if b.cfg.Accel == accel.TCG {
		defer r.awaitTurn()()
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	// Only now: podman reads a failed create's log as one single message.
	for _, w := range b.cfg.Plan.Warnings {
		r.Log.Warn(w, "id", id)
	}
	b.c.monitor = b.monitor
	return b.c, nil
}

// decide finds everything that can be found to be wrong before there is anything of
// the container, and what its VM will be.
func (b *birth) decide(id string) error {
	planned := b.rt.Trace.Begin("create: rewrite config.json")
	err := b.makePlan(id)
	planned()
	if err != nil {
		return err
	}
	if err := checkNamespaces(b.spec); err != nil {
		return err
	}
	if b.pod != nil {
		return nil // the VM is there
	}
	if err := b.findKernel(); err != nil {
		return err
	}
	var reason string
	if b.cfg.Accel, reason, err = accel.Resolve(b.rt.Accel); err != nil {
		return err
	}
	shape := b.cfg.Plan.Shape
	b.rt.Log.Debug("decided", "id", id, "kernel", shape.Kernel, "because", shape.KernelReason, "privileged", shape.Privileged,
		"accel", b.cfg.Accel, "accelBecause", reason, "memoryMiB", shape.MemoryMiB, "vcpus", shape.VCPUs)
	b.cfg.TemplateDir, err = b.rt.templatesFor(b.spec)
	return err
}

// makePlan looks at the host and rewrites config.json.
func (b *birth) makePlan(id string) (err error) {
	leaveHostNetwork(b.spec)
	if b.rootfs, err = plan.Rootfs(b.spec, b.opts.Bundle); err != nil {
		return err
	}
	if err := checkConsole(b.spec, b.opts.ConsoleSocket); err != nil {
		return err
	}
	facts, err := plan.LookAtHost(b.spec, b.opts.Bundle)
	if err != nil {
		return err
	}
	if b.pod, err = b.rt.findPod(id, b.spec); err != nil {
		return err
	}
	if b.pod != nil {
		facts.Pod = b.pod.facts(id)
	} else {
		if err := b.findParts(); err != nil {
			return err
		}
		_, facts.FullKernel = b.cfg.Parts.Kernels[kernels.Full]
	}
	if err := b.lookAround(id, facts); err != nil {
		return err
	}
	b.cfg.Plan, err = plan.Rewrite(b.spec, b.rootfs, facts, b.rt.Overrides)
	return err
}

// checkConsole has a terminal and a socket for it come together. The texts are runc's.
func checkConsole(spec *specs.Spec, socket string) error {
	terminal := spec.Process != nil && spec.Process.Terminal
	switch {
	case terminal && socket == "":
		return errors.New("cannot allocate tty if runc will detach without setting console socket")
	case !terminal && socket != "":
		return errors.New("cannot use console socket if runc will not detach or allocate tty")
	}
	return nil
}

// findParts finds the VM's parts: those that flags name before those that
// config.json names before the installed ones.
func (b *birth) findParts() (err error) {
	options := b.rt.Parts
	if vm := b.spec.VM; vm != nil {
		options.QEMU = cmp.Or(options.QEMU, vm.Hypervisor.Path)
	}
	b.cfg.Parts, err = parts.Find(options)
	return err
}

// findKernel finds the kernel that was decided on among the parts, or where config.json says.
func (b *birth) findKernel() (err error) {
	shape := b.cfg.Plan.Shape
	if b.cfg.Kernel = shape.Machine.Kernel; b.cfg.Kernel == "" {
		b.cfg.Kernel, err = b.cfg.Parts.Kernel(shape.Kernel)
		return err
	}
	if st, err := os.Stat(b.cfg.Kernel); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("vm.kernel.path: %s is no file that can be read", b.cfg.Kernel)
	}
	return nil
}

// claim makes the container's state directory, and puts down what the monitor is to
// be told. The returned function releases the container's lock.
func (b *birth) claim(id string) (unlock func(), err error) {
	dir, unlock, err := b.rt.makeStateDir(id)
	if err != nil {
		return nil, err
	}
	netns, hasNet := networkNamespace(b.spec)
	b.c = &Container{dir: dir, rt: b.rt, State: State{
		OCIVersion: b.spec.Version, ID: id, Bundle: b.opts.Bundle, Rootfs: b.rootfs, Created: time.Now().UTC(), Owner: owner(), Spec: b.spec,
		Shape: b.cfg.Plan.Shape, Accel: b.cfg.Accel.String(), NetNS: netns.Path, OwnUserNS: os.Geteuid() != 0,
	}}
	if b.pod != nil {
		b.c.Sandbox, b.c.Accel, b.c.NetNS = b.pod.ref(), b.pod.sandbox.Accel, ""
		b.c.Volumes, b.cfg.PodDir = b.cfg.Plan.Volumes(), b.c.monitorDir()
	}
	fresh, _ := hostNamespaces(b.spec)
	b.cfg.ID, b.cfg.StateDir, b.cfg.Debug, b.cfg.Trace = id, dir, b.rt.Debug, b.rt.Trace != nil
	b.cfg.ConsoleSocket, b.cfg.PlainNewlines = b.opts.ConsoleSocket, b.opts.PlainNewlines
	b.cfg.OwnNetNS, b.cfg.HostNetwork = hasNet && netns.Path == "", !hasNet
	b.cfg.OwnUTS, b.cfg.Hooks = fresh&unix.CLONE_NEWUTS != 0, plan.Hooks(b.spec).CreateContainer
	if p := b.spec.Process; p != nil {
		b.cfg.SelinuxLabel, b.cfg.OOMScoreAdj = p.SelinuxLabel, p.OOMScoreAdj
	}
	if l := b.spec.Linux; l != nil {
		b.cfg.MountLabel = l.MountLabel
	}
	return unlock, nil
}

// awaitTurn is for a VM that is emulated. What keeps it from its turn is no error:
// the VM starts all the same.
func (r *Runtime) awaitTurn() (release func()) {
	defer r.Trace.Begin("create: wait for a turn")()
	release, err := turn.Take(r.TurnFile, runtime.NumCPU(), turn.Patience)
	if err != nil {
		r.Log.Debug("started out of turn", "because", err)
		return func() {}
	}
	time.AfterFunc(turn.Limit, release)
	return release
}
