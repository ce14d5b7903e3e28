package libvm

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// Runtime is where a caller's containers are kept and how their VMs are made.
type Runtime struct {
	// Root is the state root, with a directory for each container. Another runtime
	// may use it too: entries that are not ours are left alone.
	Root string
	// SystemdCgroup makes systemd create the cgroups. Only Create looks at it; the
	// container's state keeps it.
	SystemdCgroup bool
	// NoCgroup leaves the container in its caller's cgroup, without limits on the
	// host. Only Create looks at it.
	NoCgroup bool
	// Parts says where to look for QEMU, virtiofsd, kernels and the initramfs.
	// The zero value looks beside the program and on the system.
	Parts parts.Options
	// Accel is auto, kvm or tcg; empty is auto.
	Accel string
	// TemplateDir is the directory of templates and of standby VMs. If it is empty,
	// every VM boots.
	TemplateDir string
	// TurnFile is the file whose locks are the turns of emulated starts (package
	// turn). All runtimes of a user share it. It is made when it is missing, and
	// never removed.
	TurnFile string
	// Overrides are what flags say of the VM's shape.
	Overrides plan.Overrides
	// Debug makes the guest log its steps to the console log.
	Debug bool
	// SelfArgs are the global flags with which the program is started again to
	// call RunMonitor ("monitor ID") and RunExec ("exec-process ID").
	SelfArgs []string
	// Trace records the steps of Create, Start and Exec. If it is nil, nothing is
	// recorded.
	Trace *trace.Recorder
	// Log gets decisions at level debug, and at level warn what went wrong without
	// ending the call.
	Log *slog.Logger
}

// Factory is what makes the VMs of this runtime's containers.
func (r *Runtime) Factory() *vmm.Factory {
	return &vmm.Factory{Parts: r.Parts, Accel: r.Accel, TemplateDir: r.TemplateDir, TurnFile: r.TurnFile, SelfArgs: r.SelfArgs, Log: r.Log}
}

// Load finds a container by its id. The error matches ErrNotExist or
// ErrInvalidID.
func (r *Runtime) Load(id string) (*Container, error) {
	dir, err := stateDir(r.Root, id)
	if err != nil {
		return nil, err
	}
	state, err := readState(dir, stateFile)
	if err != nil {
		return nil, err
	}
	return &Container{State: *state, dir: dir, rt: r}, nil
}

// List returns all containers below Root. What cannot be loaded is skipped with
// a warning.
func (r *Runtime) List() ([]*Container, error) {
	entries, err := os.ReadDir(r.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Container
	for _, e := range entries {
		c, err := r.Load(e.Name())
		if errors.Is(err, ErrNotExist) {
			continue // another runtime's, or being made
		}
		if err != nil {
			r.Log.Warn("skipping container", "id", e.Name(), "error", err)
			continue
		}
		all = append(all, c)
	}
	return all, nil
}

// makeStateDir claims an id. A state dir without a state file and without a
// holder of its lock is what a create that was killed left behind: it is taken
// over. The returned function releases the container's lock.
func (r *Runtime) makeStateDir(id string) (dir string, unlock func(), err error) {
	if dir, err = stateDir(r.Root, id); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(r.Root, 0o711); err != nil {
		return "", nil, fmt.Errorf("state root: %w", err)
	}
	err = os.Mkdir(dir, 0o711)
	switch {
	case err == nil:
		if err := makeLock(dir); err != nil {
			return "", nil, errors.Join(fmt.Errorf("state dir: %w", err), os.Remove(dir))
		}
	case !errors.Is(err, fs.ErrExist):
		return "", nil, fmt.Errorf("state dir: %w", err)
	}
	unlock, err = lock(dir)
	if errors.Is(err, ErrNotExist) {
		return "", nil, ErrExist // somebody's directory, not ours, or one that is being removed
	}
	if err != nil {
		return "", nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, stateFile)); err == nil {
		unlock()
		return "", nil, ErrExist
	}
	for _, name := range []string{socketFile, consoleLog, birthFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			unlock()
			return "", nil, err
		}
	}
	for _, name := range []string{shareDir, rootDir} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			unlock()
			return "", nil, err
		}
	}
	return dir, unlock, nil
}

// owner is the name of the user who made a container, or the uid where no name
// is known.
func owner() string {
	uid := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}

// templatesFor is the store for a container, or empty if its VM shall boot.
func (r *Runtime) templatesFor(spec *specs.Spec) (dir string, err error) {
	switch value := spec.Annotations[plan.AnnotationTemplate]; value {
	case "", "auto":
		return r.TemplateDir, nil
	case "off":
		return "", nil
	default:
		return "", fmt.Errorf("annotation %s=%q: auto or off", plan.AnnotationTemplate, value)
	}
}
