package hostcgroup

import "github.com/opencontainers/cgroups"

// Host names the cgroup version of this machine; an error says why its cgroups
// cannot be used.
func Host() (string, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		return "version 2", nil
	}
	if _, err := New(Config{Path: "/boxlite", ID: "boxlite"}); err != nil {
		return "", err
	}
	if cgroups.IsCgroup2HybridMode() {
		return "version 1, and version 2 without controllers", nil
	}
	return "version 1", nil
}
