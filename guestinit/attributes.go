package main

import (
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rlimits are the resources by their names in a spec.
var rlimits = []struct {
	name     string
	resource uintptr
}{
	{"RLIMIT_CPU", unix.RLIMIT_CPU},
	{"RLIMIT_FSIZE", unix.RLIMIT_FSIZE},
	{"RLIMIT_DATA", unix.RLIMIT_DATA},
	{"RLIMIT_STACK", unix.RLIMIT_STACK},
	{"RLIMIT_CORE", unix.RLIMIT_CORE},
	{"RLIMIT_RSS", unix.RLIMIT_RSS},
	{"RLIMIT_NPROC", unix.RLIMIT_NPROC},
	{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE},
	{"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK},
	{"RLIMIT_AS", unix.RLIMIT_AS},
	{"RLIMIT_LOCKS", unix.RLIMIT_LOCKS},
	{"RLIMIT_SIGPENDING", unix.RLIMIT_SIGPENDING},
	{"RLIMIT_MSGQUEUE", unix.RLIMIT_MSGQUEUE},
	{"RLIMIT_NICE", unix.RLIMIT_NICE},
	{"RLIMIT_RTPRIO", unix.RLIMIT_RTPRIO},
	{"RLIMIT_RTTIME", unix.RLIMIT_RTTIME},
}

func rlimitByName(name string) (uintptr, bool) {
	for _, r := range rlimits {
		if r.name == name {
			return r.resource, true
		}
	}
	return 0, false
}

const defaultUmask = 0o022

// keyctlJoinSession is KEYCTL_JOIN_SESSION_KEYRING.
const keyctlJoinSession = 1

// attributes appends to the script what a process keeps over its execve, apart from
// privileges. c knows the name of the session keyring.
func (s *script) attributes(p *specs.Process, c *container) error {
	s.try("join session keyring", unix.SYS_KEYCTL, keyctlJoinSession, s.cstring("_ses."+c.id))
	umask := uint32(defaultUmask)
	if p.User.Umask != nil {
		umask = *p.User.Umask
	}
	s.must("set umask", unix.SYS_UMASK, uintptr(umask))
	if p.Cwd != "" {
		s.chdir = int(s.head.count)
		s.must(fmt.Sprintf("chdir to cwd (%q) set in config.json failed", p.Cwd), unix.SYS_CHDIR, s.cstring(p.Cwd))
	}
	if p.Scheduler != nil {
		if err := s.setScheduler(p.Scheduler); err != nil {
			return err
		}
	}
	if p.IOPriority != nil {
		if err := s.setIOPriority(p.IOPriority); err != nil {
			return err
		}
	}
	if per := c.spec.Linux.Personality; per != nil {
		return s.setPersonality(per)
	}
	return nil
}

// setRlimits sets the limits of the container init, which waits. Like the script's
// setRlimits this has to be done from outside its user namespace, where no limit can be
// raised.
func setRlimits(pid int, limits []specs.POSIXRlimit) error {
	for _, l := range limits {
		resource, ok := rlimitByName(l.Type)
		if !ok {
			return fmt.Errorf("unknown rlimit %q", l.Type)
		}
		if err := unix.Prlimit(pid, int(resource), &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil {
			return fmt.Errorf("%s: %w", settingOf(l), err)
		}
	}
	return nil
}

// setRlimits appends the limits of an exec process, before it enters namespaces.
func (s *script) setRlimits(limits []specs.POSIXRlimit) error {
	for _, l := range limits {
		resource, ok := rlimitByName(l.Type)
		if !ok {
			return fmt.Errorf("unknown rlimit %q", l.Type)
		}
		s.must(settingOf(l), unix.SYS_PRLIMIT64, 0, resource, put(s, []uint64{l.Soft, l.Hard}), 0)
	}
	return nil
}

func settingOf(l specs.POSIXRlimit) string {
	return fmt.Sprintf("set %s to %d:%d", l.Type, l.Soft, l.Hard)
}

var schedulerPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: unix.SCHED_NORMAL, specs.SchedBatch: unix.SCHED_BATCH, specs.SchedIdle: unix.SCHED_IDLE,
	specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR, specs.SchedDeadline: unix.SCHED_DEADLINE,
}

var schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: unix.SCHED_FLAG_RESET_ON_FORK, specs.SchedFlagReclaim: unix.SCHED_FLAG_RECLAIM,
	specs.SchedFlagDLOverrun: unix.SCHED_FLAG_DL_OVERRUN, specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY,
	specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS, specs.SchedFlagUtilClampMin: unix.SCHED_FLAG_UTIL_CLAMP_MIN,
	specs.SchedFlagUtilClampMax: unix.SCHED_FLAG_UTIL_CLAMP_MAX,
}

func (s *script) setScheduler(sched *specs.Scheduler) error {
	policy, ok := schedulerPolicies[sched.Policy]
	if !ok {
		return fmt.Errorf("unknown scheduler policy %q", sched.Policy)
	}
	attr := unix.SchedAttr{
		Policy: policy, Nice: sched.Nice, Priority: uint32(sched.Priority),
		Runtime: sched.Runtime, Deadline: sched.Deadline, Period: sched.Period,
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	for _, name := range sched.Flags {
		flag, ok := schedulerFlags[name]
		if !ok {
			return fmt.Errorf("unknown scheduler flag %q", name)
		}
		attr.Flags |= flag
	}
	s.must("set scheduler "+string(sched.Policy), unix.SYS_SCHED_SETATTR, 0, put(s, []unix.SchedAttr{attr}), 0)
	return nil
}

// ioClasses are the classes of ioprio_set(2), which are above the 13 bits of
// the priority.
var ioClasses = map[specs.IOPriorityClass]uintptr{
	specs.IOPRIO_CLASS_RT: 1 << 13, specs.IOPRIO_CLASS_BE: 2 << 13, specs.IOPRIO_CLASS_IDLE: 3 << 13,
}

func (s *script) setIOPriority(p *specs.LinuxIOPriority) error {
	class, ok := ioClasses[p.Class]
	if !ok {
		return fmt.Errorf("unknown I/O priority class %q", p.Class)
	}
	const whoProcess = 1
	s.must("set I/O priority", unix.SYS_IOPRIO_SET, whoProcess, 0, class|uintptr(p.Priority))
	return nil
}

// Domains of personality(2), from linux/personality.h.
const (
	perLinux   = 0
	perLinux32 = 8
)

func (s *script) setPersonality(p *specs.LinuxPersonality) error {
	domain := uintptr(perLinux)
	switch p.Domain {
	case specs.PerLinux:
	case specs.PerLinux32:
		domain = perLinux32
	default:
		return fmt.Errorf("unknown personality %q", p.Domain)
	}
	if len(p.Flags) > 0 {
		return fmt.Errorf("personality flags are not supported")
	}
	s.must("set personality", unix.SYS_PERSONALITY, domain)
	return nil
}

// setAffinity appends a cpu list ("0-1,3") for an exec process.
func (s *script) setAffinity(list string) error {
	var set unix.CPUSet
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.Atoi(first)
		if err != nil {
			return fmt.Errorf("cpu list %q: %w", list, err)
		}
		to := from
		if isRange {
			if to, err = strconv.Atoi(last); err != nil {
				return fmt.Errorf("cpu list %q: %w", list, err)
			}
		}
		for cpu := from; cpu <= to && cpu < 1024; cpu++ {
			set.Set(cpu)
		}
	}
	s.must("set cpu affinity", unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(set), put(s, []unix.CPUSet{set}))
	return nil
}
