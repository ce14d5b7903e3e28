package plan

import (
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mostSubmounts bounds how many mounts below one bind are the guest's own: each costs
// its start some time.
const mostSubmounts = 64

// systemTypes are file systems whose mounts are not worth that: they are not written to,
// or mean the host's kernel.
var systemTypes = []string{
	"autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl", "mqueue", "nsfs", "proc", "pstore",
	"securityfs", "sysfs", "tracefs",
}

// submountsOf returns the paths below dir of mounts that can be seen there, parents
// first. What cannot be found out is as if it were not there.
func submountsOf(dir string) (below []string) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil
	}
	for _, m := range mounts {
		path, err := filepath.Rel(dir, m.Mountpoint)
		if err != nil || path == "." || slices.Contains(systemTypes, m.FSType) || !isMountRoot(m.Mountpoint) {
			continue
		}
		below = append(below, path)
	}
	slices.Sort(below)
	below = slices.Compact(below) // one on top of the other
	return below[:min(len(below), mostSubmounts)]
}

// isMountRoot says whether a mount's root is what is seen at path: another mount may
// hide it.
func isMountRoot(path string) bool {
	var st unix.Statx_t
	const mountRoot = unix.STATX_ATTR_MOUNT_ROOT
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes&mountRoot != 0
}

// reachesTopOnly says whether options have attributes that are not those of the mounts
// below: of a recursive bind, without an r in front.
func reachesTopOnly(options []string) bool {
	return slices.Contains(options, "rbind") && slices.ContainsFunc(options, func(o string) bool { return slices.Contains(attributeOptions, o) })
}

// readOnly says whether a bind's top is read-only, and whether what is mounted below is.
func readOnly(options []string) (top, below bool) {
	var recursive string
	for _, o := range options {
		switch o {
		case "ro", "rw":
			top = o == "ro"
		case "rro", "rrw":
			recursive = o
		}
	}
	if recursive != "" { // it comes last, whatever the order
		return recursive == "rro", recursive == "rro"
	}
	return top, false
}
