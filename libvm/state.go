package libvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// Status of a container, in the words of the runtime spec.
type Status = specs.ContainerState

// State is the content of a container's state file: what was decided at create, and
// how far the container's life has come. Create, start, pause, resume and update
// write it, under the container's lock. It does not say whether the container still
// lives: Container.Status looks at the monitor process for that.
type State struct {
	OCIVersion string    `json:"ociVersion"`
	ID         string    `json:"id"`
	Pid        int       `json:"pid"`
	Bundle     string    `json:"bundle"`
	Rootfs     string    `json:"rootfs"`
	Created    time.Time `json:"created"`
	Owner      string    `json:"owner"`

	// PidStart is field 22 of /proc/PID/stat, which tells the monitor from a
	// later process of the same pid.
	PidStart uint64 `json:"pidStart"`
	// Started is set once the guest has executed the container init.
	Started bool `json:"started"`
	// Paused is set from just before the VM's processors are stopped until they
	// run again.
	Paused bool `json:"paused,omitempty"`

	// Spec is config.json as it was at create; later edits have no effect.
	Spec *specs.Spec `json:"spec"`

	// Shape is the VM's; an update may have given it more memory.
	plan.Shape
	Accel string `json:"accel"`
	// Sandbox is the container whose VM a pod's member lives in; nil for one with a VM of
	// its own. Shape is that VM's then, but for MemoryMiB: what the VM has for the member.
	Sandbox *Sandbox `json:"sandbox,omitempty"`
	// Volumes are the names of those of the pod's volumes that a member has.
	Volumes []string `json:"volumes,omitempty"`
	// Template is the key of the template that the VM is a copy of; empty if it
	// has booted.
	Template string `json:"template,omitempty"`
	// Keeper is the pid of QEMU's parent where the VM was a standby one; zero if
	// that is the monitor.
	Keeper int `json:"keeper,omitempty"`

	// Resources are the limits that hold since an update; nil before the first.
	Resources *specs.LinuxResources `json:"resources,omitempty"`

	// OwnUserNS says that an ordinary user made the container, whose monitor is
	// root in a user namespace of its own.
	OwnUserNS bool `json:"ownUserNS,omitempty"`
	// Cgroup is where the monitor and its VMM sit on the host; nil if they have
	// none of their own.
	Cgroup *hostcgroup.State `json:"cgroup,omitempty"`
	// NetNS is the path of a network namespace that outlives the container,
	// or empty where the container's own was made for it.
	NetNS string `json:"netns,omitempty"`
}

// Sandbox is a pod's first container, which outlives the others.
type Sandbox struct {
	ID string `json:"id"`
	// Pid and PidStart are its monitor's.
	Pid      int    `json:"pid"`
	PidStart uint64 `json:"pidStart"`
}

// Names inside a state dir.
const (
	stateFile  = "state.json"
	birthFile  = "birth.json" // of a container that create has not finished
	lockFile   = "lock"
	socketFile = "monitor.sock"
	consoleLog = "console.log"
	shareDir   = "share"
	rootDir    = "root" // of QEMU
)

var validID = regexp.MustCompile(`^[\w+.-]+$`)

// stateDir checks id and returns where its state lies below root.
func stateDir(root, id string) (string, error) {
	if !validID.MatchString(id) || id == "." || id == ".." {
		return "", fmt.Errorf("%w: %q", ErrInvalidID, id)
	}
	return filepath.Join(root, id), nil
}

// writeState replaces the state file of dir, or its birth file, atomically.
func writeState(dir, name string, s *State) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, name), raw, 0o600)
}

// replaceFile writes a file beside path and renames it into place.
func replaceFile(path string, content []byte, mode fs.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	if _, err := tmp.Write(content); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// readState returns an error matching ErrNotExist where dir holds no container
// of ours (yet): the state root may be shared with another runtime's.
func readState(dir, name string) (*State, error) {
	name = filepath.Join(dir, name)
	raw, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	s := new(State)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("state file %s: %w", name, err)
	}
	if s.Spec == nil {
		return nil, fmt.Errorf("state file %s: not written by boxlite", name)
	}
	return s, nil
}

// makeLock makes the lock of a container in its new state dir.
func makeLock(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// lock takes the container's lock, waiting for whoever holds it. The returned
// function releases it. The error matches ErrNotExist where there is no lock, or where
// its holder has removed it. lock never makes one: the state dir of a container that is
// being deleted could not be removed then.
func lock(dir string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	ours, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if there, err := os.Lstat(f.Name()); err != nil || !os.SameFile(ours, there) {
		return nil, errors.Join(ErrNotExist, f.Close())
	}
	return func() { _ = f.Close() }, nil // closing is what releases; it has no error to act on
}

// processStat is what one line of /proc/PID/stat says of a process.
type processStat struct {
	state  byte
	parent int
	start  uint64
}

// childrenOf reads the lists of a process's threads (proc(5), task/TID/children).
func childrenOf(pid int) (children []int, err error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	for _, list := range lists {
		raw, err := os.ReadFile(list)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return nil, err
		}
		for field := range strings.FieldsSeq(string(raw)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", list, err)
			}
			children = append(children, child)
		}
	}
	return children, nil
}

// statProcess reads /proc/pid/stat (proc(5)).
func statProcess(pid int) (processStat, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return processStat{}, err
	}
	return parseStat(string(raw))
}

// parseStat reads fields 3 (state), 4 (parent) and 22 (start time). The command name,
// field 2, is in parentheses and may hold anything, parentheses included.
func parseStat(line string) (processStat, error) {
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return processStat{}, fmt.Errorf("malformed stat line %q", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 20 {
		return processStat{}, fmt.Errorf("malformed stat line %q", line)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return processStat{}, fmt.Errorf("malformed stat line %q", line)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return processStat{}, fmt.Errorf("malformed stat line %q", line)
	}
	return processStat{state: fields[0][0], parent: parent, start: start}, nil
}

// alive says whether the process is there, is the one that started at start,
// and has not ended (a zombie has).
func alive(pid int, start uint64) bool {
	if pid <= 0 {
		return false
	}
	st, err := statProcess(pid)
	return err == nil && st.start == start && st.state != 'Z' && st.state != 'X'
}
