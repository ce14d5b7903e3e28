package libvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxConfigBytes bounds config.json, which crosses the control port whole.
const maxConfigBytes = 4 << 20

// LoadSpec reads and checks a bundle's config.json. Errors name the file and
// what is wrong with it.
func LoadSpec(bundle string) (*specs.Spec, error) {
	name := filepath.Join(bundle, "config.json")
	st, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("JSON specification file %s not found", name)
	}
	if err != nil {
		return nil, err
	}
	if st.Size() > maxConfigBytes {
		return nil, fmt.Errorf("%s: %d bytes, at most %d", name, st.Size(), maxConfigBytes)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(raw, spec); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := validate(spec); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return spec, nil
}

// semver is the grammar of semver.org 2.0.0 with the major version that the
// runtime spec has had since 2017.
var semver = regexp.MustCompile(`^1\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// validate refuses what cannot be honoured in a VM or makes no sense, before
// anything has been made.
func validate(spec *specs.Spec) error {
	if !semver.MatchString(spec.Version) {
		return fmt.Errorf("ociVersion %q: want a version 1.x.y", spec.Version)
	}
	if spec.Root == nil || spec.Root.Path == "" {
		return errors.New("root.path is missing")
	}
	if spec.Process != nil {
		if err := ValidateProcess(spec.Process); err != nil {
			return err
		}
	}
	for _, m := range spec.Mounts {
		if m.Destination == "" {
			return errors.New("a mount without destination")
		}
	}
	if spec.Linux == nil {
		return nil
	}
	return validateLinux(spec.Linux)
}

// ValidateProcess checks the process object of config.json or of an exec.
func ValidateProcess(proc *specs.Process) error {
	if len(proc.Args) == 0 {
		return errors.New("process.args is empty")
	}
	if !filepath.IsAbs(proc.Cwd) {
		return fmt.Errorf("process.cwd %q is not absolute", proc.Cwd)
	}
	return nil
}

func validateLinux(l *specs.Linux) error {
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range l.Namespaces {
		if _, ok := cloneFlags[ns.Type]; !ok {
			return fmt.Errorf("unknown namespace type %q", ns.Type)
		}
		if seen[ns.Type] {
			return fmt.Errorf("namespace type %q is listed twice", ns.Type)
		}
		seen[ns.Type] = true
	}
	for _, d := range l.Devices {
		if !filepath.IsAbs(d.Path) {
			return fmt.Errorf("linux.devices: path %q is not absolute", d.Path)
		}
		if !strings.Contains("cubp", d.Type) || len(d.Type) != 1 {
			return fmt.Errorf("linux.devices: %s: type %q of device: c, u, b or p", d.Path, d.Type)
		}
	}
	switch {
	case l.IntelRdt != nil:
		return errors.New("linux.intelRdt: a VM's cache allocation cannot be set")
	case l.Seccomp != nil && l.Seccomp.ListenerPath != "":
		return errors.New("linux.seccomp.listenerPath: notifications do not cross the VM's boundary")
	case l.Personality != nil && strings.ToUpper(string(l.Personality.Domain)) != "LINUX":
		return fmt.Errorf("linux.personality %q: only LINUX", l.Personality.Domain)
	}
	return nil
}
