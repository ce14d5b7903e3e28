package plan

import (
	"fmt"
	"slices"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// knownCapabilities are the 41 of the guest kernels, CAP_CHOWN to
// CAP_CHECKPOINT_RESTORE, by the names config.json uses.
var knownCapabilities = func() map[string]bool {
	known := map[string]bool{}
	for _, c := range capability.ListKnown() {
		known["CAP_"+upper(c.String())] = true
	}
	return known
}()

// withheldCapabilities are those that no process of the caller's can have: they are
// not in its bounding set (capabilities(7)), or the kernel does not know them. An
// engine's ALL may lack them. Docker's does from 22.06 on.
func withheldCapabilities() map[string]bool {
	withheld := map[string]bool{}
	for _, c := range capability.ListKnown() {
		if has, err := capability.GetBound(c); err != nil || !has {
			withheld["CAP_"+upper(c.String())] = true
		}
	}
	return withheld
}

func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// dropUnknownCapabilities takes the names that the guest's kernel does not know
// out of all five sets and names each in a warning. It never touches another
// name: one wrong entry must not cost the container the rest.
func dropUnknownCapabilities(caps *specs.LinuxCapabilities) (warnings []string) {
	var unknown []string
	for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Inheritable, &caps.Permitted, &caps.Ambient} {
		*set = slices.DeleteFunc(*set, func(name string) bool {
			if knownCapabilities[name] {
				return false
			}
			if !slices.Contains(unknown, name) {
				unknown = append(unknown, name)
			}
			return true
		})
	}
	for _, name := range unknown {
		warnings = append(warnings, fmt.Sprintf("unknown capability %q is left out", name))
	}
	return warnings
}

// trimAmbient takes from the ambient set what is not both permitted and
// inheritable: the kernel holds to that (capabilities(7)), and runc passes over
// such a name in silence. Its own "runc spec" writes some.
func trimAmbient(caps *specs.LinuxCapabilities) {
	caps.Ambient = slices.DeleteFunc(caps.Ambient, func(name string) bool {
		return !slices.Contains(caps.Permitted, name) || !slices.Contains(caps.Inheritable, name)
	})
}

// BindsLowPorts says that a process of the container may listen at ports below 1024.
func (p *Plan) BindsLowPorts() bool {
	return slices.Contains(allCapabilities(p.Guest.Process), "CAP_NET_BIND_SERVICE")
}

// allCapabilities is every capability of any of the five sets.
func allCapabilities(proc *specs.Process) []string {
	if proc == nil || proc.Capabilities == nil {
		return nil
	}
	c := proc.Capabilities
	return slices.Concat(c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient)
}
