package plan

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/nofile"
)

const unlimited = unix.RLIM_INFINITY

// rlimits are the limits that a process has, with what a guest gives to one whose
// process object does not name them. That is nil where it is for guestinit's own needs,
// or follows from the VM's memory.
var rlimits = []struct {
	name     string
	resource int
	guest    *unix.Rlimit
}{
	{"RLIMIT_CPU", unix.RLIMIT_CPU, &unix.Rlimit{Cur: unlimited, Max: unlimited}},
	{"RLIMIT_FSIZE", unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: unlimited, Max: unlimited}},
	{"RLIMIT_DATA", unix.RLIMIT_DATA, &unix.Rlimit{Cur: unlimited, Max: unlimited}},
	{"RLIMIT_STACK", unix.RLIMIT_STACK, &unix.Rlimit{Cur: 8 << 20, Max: unlimited}},
	{"RLIMIT_CORE", unix.RLIMIT_CORE, &unix.Rlimit{Cur: 0, Max: unlimited}},
	{"RLIMIT_RSS", unix.RLIMIT_RSS, &unix.Rlimit{Cur: unlimited, Max: unlimited}},
	{"RLIMIT_NPROC", unix.RLIMIT_NPROC, nil},
	{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, nil},
	{"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK, nil},
	{"RLIMIT_AS", unix.RLIMIT_AS, &unix.Rlimit{Cur: unlimited, Max: unlimited}},
	{"RLIMIT_LOCKS", unix.RLIMIT_LOCKS, &unix.Rlimit{Cur: unlimited, Max: unlimited}},
	{"RLIMIT_SIGPENDING", unix.RLIMIT_SIGPENDING, nil},
	{"RLIMIT_MSGQUEUE", unix.RLIMIT_MSGQUEUE, nil},
	{"RLIMIT_NICE", unix.RLIMIT_NICE, &unix.Rlimit{}},
	{"RLIMIT_RTPRIO", unix.RLIMIT_RTPRIO, &unix.Rlimit{}},
	{"RLIMIT_RTTIME", unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: unlimited, Max: unlimited}},
}

// CallersRlimits are the limits that this process was started with, without those that
// every process of a guest has.
func CallersRlimits() (limits []specs.POSIXRlimit) {
	for _, r := range rlimits {
		var has unix.Rlimit
		if err := unix.Getrlimit(r.resource, &has); err != nil {
			continue
		}
		if r.resource == unix.RLIMIT_NOFILE && nofile.Hard != 0 {
			has = unix.Rlimit{Cur: nofile.Soft, Max: nofile.Hard}
		}
		if r.guest == nil || has != *r.guest {
			limits = append(limits, specs.POSIXRlimit{Type: r.name, Soft: has.Cur, Hard: has.Max})
		}
	}
	return limits
}

// InheritRlimits adds the caller's limits to a process object, of config.json or of an
// exec, where it does not name them. Under runc a process inherits them.
func InheritRlimits(proc *specs.Process, callers []specs.POSIXRlimit) {
	for _, l := range callers {
		if !slices.ContainsFunc(proc.Rlimits, func(named specs.POSIXRlimit) bool { return named.Type == l.Type }) {
			proc.Rlimits = append(proc.Rlimits, l)
		}
	}
}
