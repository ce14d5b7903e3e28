// Package hostcgroup is the container's cgroup on the host: monitor, virtiofsd
// and QEMU together in one leaf at linux.cgroupsPath, under config.json's
// limits with room for what the VM itself takes. The exact limits are the
// guest's business.
//
// Both cgroup versions and the hybrid of them work, made directly or by
// systemd. Controllers and files that the host lacks are passed over or
// refused as runc does, by the same library.
package hostcgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // lets the managers set device rules
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Config says where the cgroup is. It never changes once a container exists.
type Config struct {
	// Path is linux.cgroupsPath. Absolute: from the root of each hierarchy.
	// Relative: under the caller's own cgroup (version 2: beside it). Empty:
	// ID, as a relative path. With Systemd it is slice:prefix:name instead.
	Path string `json:"path,omitempty"`
	// ID is the container's.
	ID string `json:"id"`
	// Systemd has systemd make the cgroup.
	Systemd bool `json:"systemd,omitempty"`
	// Rootless tolerates cgroups that cannot be made, as long as no limits
	// are asked for. It is implied in a user namespace.
	Rootless bool `json:"rootless,omitempty"`
}

// Cgroup is one container's cgroup. Its methods are not for several goroutines
// at a time.
type Cgroup struct {
	config  Config
	manager cgroups.Manager
	// foreign are the paths that were someone's before, and stay. They had that many
	// processes.
	foreign map[string]bool
	others  int
	loaded  bool // by Load: it exists
	limited bool // Set has run, the device rules stand
}

// State is what the container's state file keeps of a Cgroup, for Load.
type State struct {
	Config Config `json:"config"`
	// Paths are the directories by controller; version 2 has one, under "".
	Paths map[string]string `json:"paths"`
	// Foreign are those of Paths that Destroy leaves alone.
	Foreign []string `json:"foreign,omitempty"`
}

// New reads c and the host's cgroup hierarchies. It makes nothing.
func New(c Config) (*Cgroup, error) {
	config, err := c.forManager()
	if err != nil {
		return nil, err
	}
	m, err := manager.New(config)
	if err != nil {
		return nil, err
	}
	return &Cgroup{config: c, manager: m, foreign: map[string]bool{}}, nil
}

// Load returns the cgroup that an earlier New has made an object for. The cgroup
// itself may be gone by now.
func Load(s State) (*Cgroup, error) {
	config, err := s.Config.forManager()
	if err != nil {
		return nil, err
	}
	m, err := manager.NewWithPaths(config, maps.Clone(s.Paths))
	if err != nil {
		return nil, err
	}
	c := &Cgroup{config: s.Config, manager: m, foreign: map[string]bool{}, loaded: true, limited: true}
	for _, path := range s.Foreign {
		c.foreign[path] = true
	}
	return c, nil
}

func (c Config) rootless() bool { return c.Rootless || userns.RunningInUserNS() }

// forManager is the library's form of c.
func (c Config) forManager() (*cgroups.Cgroup, error) {
	config := &cgroups.Cgroup{
		Systemd:  c.Systemd,
		Rootless: c.rootless(),
		// Until Set has run every device is open. Made by systemd without
		// this, the cgroup would start with none; made directly with it,
		// the devices hierarchy would be left out.
		Resources: &cgroups.Resources{SkipDevices: c.Systemd},
	}
	switch {
	case c.Systemd && c.Path == "":
		config.ScopePrefix, config.Name = "boxlite", c.ID
	case c.Systemd:
		parts := strings.Split(c.Path, ":")
		if len(parts) != 3 {
			return nil, fmt.Errorf("cgroupsPath %q is not of the form slice:prefix:name, which systemd cgroups need", c.Path)
		}
		config.Parent, config.ScopePrefix, config.Name = parts[0], parts[1], parts[2]
	case c.Path == "":
		config.Name = c.ID
	default:
		config.Path = c.Path
	}
	return config, nil
}

// Apply makes the cgroup, if this is the first call, and moves the process into it.
func (c *Cgroup) Apply(pid int) error {
	if c.loaded {
		err := ignoreRootless(c.manager.AddPid("", pid))
		if errors.Is(err, fs.ErrNotExist) && c.config.rootless() {
			return nil // it could not be made then, and is not missed now
		}
		return err
	}
	for _, path := range c.manager.GetPaths() {
		// An empty one is what is left of a container of the same name.
		if pids, err := cgroups.GetAllPids(path); err == nil && len(pids) > 0 {
			c.foreign[path] = true
			c.others = max(c.others, len(pids))
		}
	}
	if err := ignoreRootless(c.manager.Apply(pid)); err != nil {
		return err
	}
	c.loaded = true
	return nil
}

// Others is how many processes the cgroup had before the first Apply.
func (c *Cgroup) Others() int { return c.others }

// CheckMoving returns an error if a process would stand still in the cgroup: it is there and frozen, or
// one around it is.
func (c *Cgroup) CheckMoving() error {
	paths := c.manager.GetPaths()
	dir, name := paths["freezer"], "freezer.state"
	if cgroups.IsCgroup2UnifiedMode() {
		dir, name = paths[""], "cgroup.freeze"
	}
	for ; strings.HasPrefix(dir, hierarchies); dir = filepath.Dir(dir) {
		state, err := os.ReadFile(filepath.Join(dir, name))
		switch text := strings.TrimSpace(string(state)); {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV): // not there yet, or the root
		case err != nil:
			return err
		case text == "1", text == "FROZEN", text == "FREEZING":
			return errors.New("container's cgroup unexpectedly frozen") // runc's words
		}
	}
	return nil
}

// hierarchies is where the host has its cgroups.
const hierarchies = "/sys/fs/cgroup/"

// ignoreRootless passes over a controller that an ordinary user cannot have.
// Limits that would need it make Set fail.
func ignoreRootless(err error) error {
	if errors.Is(err, cgroups.ErrRootless) {
		return nil
	}
	return err
}

// Set writes the limits, with extra added to memory and pids. What r leaves out
// stays as it is; a nil r changes nothing. Device rules are written by the first
// call, and by later calls if r has any.
func (c *Cgroup) Set(r *specs.LinuxResources, extra Overhead) error {
	resources, err := convert(r, extra)
	if err != nil {
		return err
	}
	resources.SkipDevices = c.limited && (r == nil || len(r.Devices) == 0)
	if !c.limited && r != nil {
		if err := c.listDevices(r.Devices); err != nil {
			return err
		}
	}
	if err := c.manager.Set(resources); err != nil {
		return err
	}
	c.limited = true
	return nil
}

// listDevices writes config.json's device rules to a cgroup of version 1 one
// after the other, so that the kernel lists them in their order, as the runtime
// spec wants it. The library, which follows, then only has to add the VMM's.
func (c *Cgroup) listDevices(rules []specs.LinuxDeviceCgroup) error {
	dir := c.manager.Path("devices")
	if dir == "" || cgroups.IsCgroup2UnifiedMode() || c.config.Systemd || userns.RunningInUserNS() {
		return nil // the library knows what to do
	}
	for i, d := range rules {
		rule, err := convertDevice(d)
		if err != nil {
			return fmt.Errorf("linux.resources.devices[%d]: %w", i, err)
		}
		file := "devices.deny"
		if rule.Allow {
			file = "devices.allow"
		}
		if err := cgroups.WriteFile(dir, file, rule.CgroupString()); err != nil {
			return err
		}
	}
	return nil
}

// Pids lists the processes of the cgroup and of any below it. There are none
// when it is gone.
func (c *Cgroup) Pids() ([]int, error) {
	if !c.manager.Exists() {
		return nil, nil
	}
	return c.manager.GetAllPids()
}

// Blkio counts block I/O by device and operation, in runc's form.
type Blkio struct {
	Bytes      []BlkioEntry `json:"ioServiceBytesRecursive,omitempty"`
	Operations []BlkioEntry `json:"ioServicedRecursive,omitempty"`
}

// BlkioEntry is a count for one device and operation (Read, Write, ...).
type BlkioEntry struct {
	Major uint64 `json:"major,omitempty"`
	Minor uint64 `json:"minor,omitempty"`
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

// Blkio reads the block I/O of the cgroup's processes.
func (c *Cgroup) Blkio() (Blkio, error) {
	stats, err := c.manager.GetStats()
	if err != nil {
		return Blkio{}, err
	}
	convert := func(entries []cgroups.BlkioStatEntry) (out []BlkioEntry) {
		for _, e := range entries {
			out = append(out, BlkioEntry(e))
		}
		return out
	}
	return Blkio{convert(stats.BlkioStats.IoServiceBytesRecursive), convert(stats.BlkioStats.IoServicedRecursive)}, nil
}

// Freeze stops every process until Thaw.
func (c *Cgroup) Freeze() error { return c.manager.Freeze(cgroups.Frozen) }

// Thaw undoes Freeze. A cgroup that is not frozen is no error.
func (c *Cgroup) Thaw() error { return c.manager.Freeze(cgroups.Thawed) }

// destroyTimeout is how long processes that have been killed may take to leave.
const destroyTimeout = 5 * time.Second

// Destroy removes the cgroup. It leaves directories that were there before Apply
// with processes of others in them. All processes in the cgroup have to be dead, or
// about to be. Destroy can be repeated.
func (c *Cgroup) Destroy() error {
	if c.config.Systemd {
		return c.manager.Destroy() // the unit is ours, whatever it is made of
	}
	paths := maps.Clone(c.manager.GetPaths())
	maps.DeleteFunc(paths, func(_, path string) bool { return c.foreign[path] })
	deadline := time.Now().Add(destroyTimeout)
	for {
		// Retries for a while by itself, and takes off the list what is gone.
		err := cgroups.RemovePaths(paths)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove: %w", err)
		}
	}
}

// Paths are the cgroup's directories by controller; version 2 has one, under "".
func (c *Cgroup) Paths() map[string]string { return maps.Clone(c.manager.GetPaths()) }

// State is what Load needs.
func (c *Cgroup) State() State {
	s := State{Config: c.config, Paths: c.Paths()}
	if c.loaded && c.config.rootless() {
		maps.DeleteFunc(s.Paths, func(_, path string) bool { return !cgroups.PathExists(path) })
	}
	for path := range c.foreign {
		s.Foreign = append(s.Foreign, path)
	}
	return s
}
