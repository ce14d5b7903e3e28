package main

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// capabilityNames are in the order of the kernel's numbers.
var capabilityNames = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// allCapabilities has the bit of each of capabilityNames.
const allCapabilities = 1<<41 - 1

// capabilitySets are the five sets of a process, as bits.
type capabilitySets struct {
	bounding, effective, inheritable, permitted, ambient uint64
}

// parseCapabilities turns names into sets. The host has dropped the names that
// no kernel knows; one that is left is a mistake between the two sides.
func parseCapabilities(c *specs.LinuxCapabilities) (sets capabilitySets, err error) {
	if c == nil {
		return sets, nil // as runc: no capabilities object, no capabilities
	}
	for _, row := range []struct {
		bits  *uint64
		names []string
	}{
		{&sets.bounding, c.Bounding},
		{&sets.effective, c.Effective},
		{&sets.inheritable, c.Inheritable},
		{&sets.permitted, c.Permitted},
		{&sets.ambient, c.Ambient},
	} {
		for _, name := range row.names {
			n := slices.Index(capabilityNames, name)
			if n < 0 {
				return sets, fmt.Errorf("unknown capability %q", name)
			}
			*row.bits |= 1 << n
		}
	}
	return sets, nil
}

// capset appends the call that sets the three classic sets.
func (s *script) capset(effective, permitted, inheritable uint64) {
	header := put(s, []uint32{unix.LINUX_CAPABILITY_VERSION_3, 0})
	sets := put(s, []uint32{
		uint32(effective), uint32(permitted), uint32(inheritable),
		uint32(effective >> 32), uint32(permitted >> 32), uint32(inheritable >> 32),
	})
	s.must("apply capabilities", unix.SYS_CAPSET, header, sets)
}

func (s *script) dropBounding(keep uint64) {
	for n, name := range capabilityNames {
		if keep&(1<<n) == 0 {
			s.must("drop "+name+" from the bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(n))
		}
	}
}

func (s *script) raiseAmbient(raise uint64) {
	s.must("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	for n, name := range capabilityNames {
		if raise&(1<<n) != 0 {
			s.must("raise ambient "+name, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n))
		}
	}
}

// become appends the user and group ids. Capabilities survive, for the steps
// that follow.
func (s *script) become(user specs.User) {
	groups := slices.Compact(slices.Sorted(slices.Values(user.AdditionalGids))) // the kernel would keep what is there twice
	s.must("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	s.must("set additional groups", unix.SYS_SETGROUPS, uintptr(len(groups)), put(s, groups))
	gid, uid := uintptr(user.GID), uintptr(user.UID)
	s.must(fmt.Sprintf("set group id %d", gid), unix.SYS_SETRESGID, gid, gid, gid)
	s.must(fmt.Sprintf("set user id %d", uid), unix.SYS_SETRESUID, uid, uid, uid)
	s.must("keep capabilities no longer", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0)
}

// confine appends everything that takes privileges away, ending before the
// execve. gate is called to append what shall come once nothing but the filter
// is left to do. Loading a filter is itself a privilege, unless no_new_privs
// gives them all up; then capabilities must be dropped under the filter.
func (s *script) confine(p *specs.Process, filter *guestproto.SeccompFilter, gate func()) error {
	sets, err := parseCapabilities(p.Capabilities)
	if err != nil {
		return err
	}
	s.dropBounding(sets.bounding)
	s.become(p.User)
	drop := func() {
		s.capset(sets.effective, sets.permitted, sets.inheritable)
		s.raiseAmbient(sets.ambient)
	}
	if p.NoNewPrivileges || filter == nil {
		drop()
		if p.NoNewPrivileges {
			s.must("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
		}
		gate()
		s.loadFilter(filter)
		return nil
	}
	const sysAdmin = 1 << unix.CAP_SYS_ADMIN
	s.capset(sets.effective|sysAdmin, sets.permitted|sysAdmin, sets.inheritable)
	gate()
	s.loadFilter(filter)
	drop()
	return nil
}

// sockFprog is struct sock_fprog.
type sockFprog struct {
	count  uint64 // a 16-bit number and padding
	filter uintptr
}

func (s *script) loadFilter(f *guestproto.SeccompFilter) {
	if f == nil {
		return
	}
	count := len(f.Program) / int(unsafe.Sizeof(unix.SockFilter{}))
	fprog := put(s, []sockFprog{{count: uint64(count), filter: s.bytes(f.Program)}})
	s.must("load seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), fprog)
}
