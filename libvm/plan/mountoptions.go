package plan

import (
	"slices"
)

// The words of a mount's options that are not for its file system, as guestinit
// carries them out; attributeOptions also with an r in front, for everything
// below the mount. A test compares them with guestinit.
var (
	attributeOptions = []string{
		"atime", "dev", "diratime", "exec", "noatime", "nodev", "nodiratime", "noexec", "norelatime", "nostrictatime",
		"nosuid", "nosymfollow", "relatime", "ro", "rw", "strictatime", "suid", "symfollow",
	}
	otherOptions = []string{
		"acl", "async", "bind", "defaults", "dirsync", "idmap", "iversion", "lazytime", "loud", "mand", "noacl",
		"noiversion", "nolazytime", "nomand", "private", "rbind", "remount", "ridmap", "rprivate", "rshared", "rslave",
		"runbindable", "shared", "silent", "slave", "sync", "tmpcopyup", "unbindable",
	}
)

// MountOptions returns the mount options that are not left to file systems, sorted.
func MountOptions() []string {
	options := slices.Concat(attributeOptions, otherOptions)
	for _, o := range attributeOptions {
		options = append(options, "r"+o)
	}
	slices.Sort(options)
	return options
}
