package engineconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Runtime is an OCI runtime as an engine is told of it.
type Runtime struct {
	Name string
	Path string
	// Args are global flags that the engine gives it with each command. Only
	// Docker can.
	Args []string
	// Default makes it the runtime of containers that name none.
	Default bool
}

func (rt Runtime) equal(other Runtime) bool {
	return rt.Name == other.Name && rt.Path == other.Path && slices.Equal(rt.Args, other.Args) && rt.Default == other.Default
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)

// ownNames are those that engines have runtimes of their own for.
var ownNames = []string{"runc", "crun"}

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("runtime name %q: letters, digits, - and _ are allowed", name)
	}
	if slices.Contains(ownNames, name) {
		return fmt.Errorf("runtime name %q: the engine has a runtime of this name", name)
	}
	return nil
}

// A format is how an engine's file says what runtimes there are. Texts are whole
// files, nil for one that does not exist. A text that is broken is an error with
// line and column.
type format interface {
	// find returns the runtime of a name, or nil if text has none.
	find(text []byte, name string) (*Runtime, error)
	// add returns text with rt in it, in the place of one of the same name.
	add(text []byte, rt Runtime) ([]byte, error)
	// remove returns text without the runtime that find has found, nil for a file
	// to be deleted. What before says of the default holds again; before is the text
	// as it was without the runtime, nil if nobody knows.
	remove(text, before []byte, name string) ([]byte, error)
}

// An Engine is a program that starts containers by OCI runtimes.
type Engine string

// The engines that are known.
const (
	Docker     Engine = "docker"
	Podman     Engine = "podman"
	Containerd Engine = "containerd"
	CRIO       Engine = "cri-o"
)

// File is the engine's configuration, or the drop-in for a runtime of that name
// where the engine has a directory of those. configHome is the directory of an
// ordinary user's configuration, empty for the machine's.
func (e Engine) File(name, configHome string) (string, error) {
	base := configHome
	if base == "" {
		base = "/etc"
	}
	switch e {
	case Docker:
		return filepath.Join(base, "docker/daemon.json"), nil
	case Podman:
		return filepath.Join(base, "containers/containers.conf.d", name+".conf"), nil
	case Containerd:
		return filepath.Join(base, "containerd/config.toml"), nil
	}
	if configHome != "" {
		return "", errors.New("CRI-O runs as root only")
	}
	return filepath.Join(base, "crio/crio.conf.d", name+".conf"), nil
}

// Install works out what registers rt in a configuration file of the engine's.
// rt stays the default if it is already. The change is empty if the file says all
// of that.
func (e Engine) Install(file string, rt Runtime) (Change, error) {
	if err := checkName(rt.Name); err != nil {
		return Change{}, err
	}
	if len(rt.Args) > 0 && e != Docker {
		return Change{}, fmt.Errorf("%s has no place for flags of a runtime: %s", e, strings.Join(rt.Args, " "))
	}
	c, f, err := e.open(file, rt.Name)
	if err != nil {
		return Change{}, err
	}
	found, err := f.find(c.Old, rt.Name)
	if err == nil && found != nil {
		rt.Default = rt.Default || found.Default
	}
	if err == nil && (found == nil || !found.equal(rt)) {
		c.New, err = f.add(c.Old, rt)
	}
	if err != nil {
		return Change{}, fmt.Errorf("%s: %w", c.Path, err)
	}
	if now, err := f.find(c.New, rt.Name); err != nil || now == nil || !now.equal(rt) {
		return Change{}, fmt.Errorf("%s: it is written in a way that is not understood well enough to edit it", c.Path)
	}
	c.keeps = found == nil && c.Old != nil
	if found != nil && !c.Empty() { // an earlier install's, or made by hand
		own, err := f.add(nil, *found)
		_, statErr := os.Stat(c.Backup())
		c.keeps = errors.Is(statErr, fs.ErrNotExist) && (err != nil || !bytes.Equal(own, c.Old))
	}
	return c, nil
}

// Uninstall works out what takes the runtime of a name out of a configuration
// file again. If nothing else has been changed since Install added it, the file will
// be as it was before. The change is empty if there is no such runtime.
func (e Engine) Uninstall(file, name string) (Change, error) {
	if err := checkName(name); err != nil {
		return Change{}, err
	}
	c, f, err := e.open(file, name)
	if err != nil {
		return Change{}, err
	}
	found, err := f.find(c.Old, name)
	if err != nil {
		return Change{}, fmt.Errorf("%s: %w", c.Path, err)
	}
	if found == nil {
		return c, nil
	}
	before, err := os.ReadFile(c.Backup())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Change{}, err
	}
	// Of a runtime made by hand before, nothing remains either.
	if had, err := f.find(before, name); err == nil && had == nil {
		if installed, err := f.add(before, *found); err == nil && bytes.Equal(installed, c.Old) {
			c.New, c.restores = before, before != nil
			return c, nil
		}
	}
	if c.New, err = f.remove(c.Old, before, name); err != nil {
		return Change{}, fmt.Errorf("%s: %w", c.Path, err)
	}
	return c, nil
}

// open reads the file that a runtime of that name is to be in. For containerd it
// may be another than the one given.
func (e Engine) open(file, name string) (Change, format, error) {
	c, err := readChange(file, name)
	if err != nil {
		return Change{}, nil, err
	}
	switch e {
	case Docker:
		return c, dockerFormat{}, nil
	case Podman:
		return c, podmanFormat, nil
	case CRIO:
		return c, crioFormat, nil
	}
	dropIn, err := containerdDropIn(c.Path, c.Old, name)
	if err != nil {
		return Change{}, nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	if dropIn == "" {
		return c, containerdFormat{}, nil
	}
	c, err = readChange(dropIn, name)
	return c, containerdDropInFormat, err
}
