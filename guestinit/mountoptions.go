package main

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A mountOption is one word of a mount's options that is not for the file
// system itself.
type mountOption struct {
	name string
	// set and clear are MOUNT_ATTR_* bits of the mount.
	set, clear uint64
	// flag goes to the file system as a flag without a value.
	flag string
	// propagation is a propagation type, with MS_REC or without.
	propagation uintptr
	// bind is MS_BIND, with MS_REC or without.
	bind uintptr
	// copyUp fills a new tmpfs with what it hides.
	copyUp bool
	// idmap is MS_BIND or MS_BIND|MS_REC for an id-mapped mount.
	idmap uintptr
}

// mountOptions are the words that runc knows. Each row with set or clear bits
// has a recursive twin with an r in front. Rows with nothing but a name are
// accepted and mean nothing here.
var mountOptions = [...]mountOption{
	{name: "ro", set: unix.MOUNT_ATTR_RDONLY},
	{name: "rw", clear: unix.MOUNT_ATTR_RDONLY},
	{name: "nosuid", set: unix.MOUNT_ATTR_NOSUID},
	{name: "suid", clear: unix.MOUNT_ATTR_NOSUID},
	{name: "nodev", set: unix.MOUNT_ATTR_NODEV},
	{name: "dev", clear: unix.MOUNT_ATTR_NODEV},
	{name: "noexec", set: unix.MOUNT_ATTR_NOEXEC},
	{name: "exec", clear: unix.MOUNT_ATTR_NOEXEC},
	{name: "nodiratime", set: unix.MOUNT_ATTR_NODIRATIME},
	{name: "diratime", clear: unix.MOUNT_ATTR_NODIRATIME},
	{name: "nosymfollow", set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	{name: "symfollow", clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	// The three kinds of access times are one field; relatime is its zero.
	{name: "relatime", set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	{name: "norelatime", clear: unix.MOUNT_ATTR__ATIME},
	{name: "noatime", set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	{name: "atime", clear: unix.MOUNT_ATTR__ATIME},
	{name: "strictatime", set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	{name: "nostrictatime", clear: unix.MOUNT_ATTR__ATIME},

	{name: "sync", flag: "sync"},
	{name: "async", flag: "async"},
	{name: "dirsync", flag: "dirsync"},
	{name: "lazytime", flag: "lazytime"},
	{name: "nolazytime", flag: "nolazytime"},
	{name: "mand", flag: "mand"},
	{name: "nomand", flag: "nomand"},

	{name: "private", propagation: unix.MS_PRIVATE},
	{name: "rprivate", propagation: unix.MS_PRIVATE | unix.MS_REC},
	{name: "shared", propagation: unix.MS_SHARED},
	{name: "rshared", propagation: unix.MS_SHARED | unix.MS_REC},
	{name: "slave", propagation: unix.MS_SLAVE},
	{name: "rslave", propagation: unix.MS_SLAVE | unix.MS_REC},
	{name: "unbindable", propagation: unix.MS_UNBINDABLE},
	{name: "runbindable", propagation: unix.MS_UNBINDABLE | unix.MS_REC},

	{name: "bind", bind: unix.MS_BIND},
	{name: "rbind", bind: unix.MS_BIND | unix.MS_REC},
	{name: "tmpcopyup", copyUp: true},
	{name: "idmap", idmap: unix.MS_BIND},
	{name: "ridmap", idmap: unix.MS_BIND | unix.MS_REC},

	{name: "defaults"},
	{name: "remount"},
	{name: "acl"},
	{name: "noacl"},
	{name: "iversion"},
	{name: "noiversion"},
	{name: "silent"},
	{name: "loud"},
}

// mountPlan is what a mount's options come to.
type mountPlan struct {
	// attrs apply to the mount alone, recursive to it and those below.
	attrs, recursive unix.MountAttr
	propagation      []uintptr
	bind             uintptr
	idmap            uintptr
	copyUp           bool
	// parameters are for the file system: flags (no value) and settings.
	parameters []mountParameter
}

// has says that the options set the parameter key.
func (p *mountPlan) has(key string) bool {
	return slices.ContainsFunc(p.parameters, func(m mountParameter) bool { return m.key == key })
}

type mountParameter struct{ key, value string }

func (p mountParameter) String() string {
	if p.value == "" {
		return p.key
	}
	return p.key + "=" + p.value
}

// apply adds one option to bits that are to be set and cleared: the last word
// on a bit wins.
func (o *mountOption) apply(a *unix.MountAttr) {
	a.Attr_set = a.Attr_set&^o.clear | o.set
	a.Attr_clr |= o.clear
	if o.clear&unix.MOUNT_ATTR__ATIME == 0 {
		a.Attr_clr &^= o.set
	}
}

// planMount reads a mount's options. Words that it does not know are the file
// system's, which has the last say on them. Empty ones, such as Podman 5's for
// --systemd, say nothing.
func planMount(options []string) (plan mountPlan) {
	for _, word := range options {
		if word == "" {
			continue
		}
		if o := findMountOption(word); o != nil {
			o.apply(&plan.attrs)
			if o.propagation != 0 {
				plan.propagation = append(plan.propagation, o.propagation)
			}
			plan.bind |= o.bind
			plan.idmap |= o.idmap
			plan.copyUp = plan.copyUp || o.copyUp
			if o.flag != "" {
				plan.parameters = append(plan.parameters, mountParameter{key: o.flag})
			}
			continue
		}
		if o := findMountOption(strings.TrimPrefix(word, "r")); word[0] == 'r' && o != nil && o.set|o.clear != 0 {
			o.apply(&plan.recursive)
			continue
		}
		key, value, _ := strings.Cut(word, "=")
		plan.parameters = append(plan.parameters, mountParameter{key, value})
	}
	return plan
}

func findMountOption(word string) *mountOption {
	for i := range mountOptions {
		if mountOptions[i].name == word {
			return &mountOptions[i]
		}
	}
	return nil
}
