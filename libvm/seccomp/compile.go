package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Filter is ready for seccomp(2).
type Filter struct {
	Program []unix.SockFilter
	// Flags are SECCOMP_FILTER_FLAG_*.
	Flags uint
}

// Encode gives the program as the kernel reads it: an array of struct sock_filter.
func (f *Filter) Encode() []byte {
	var raw []byte
	for _, i := range f.Program {
		raw = binary.NativeEndian.AppendUint16(raw, i.Code)
		raw = append(raw, i.Jt, i.Jf)
		raw = binary.NativeEndian.AppendUint32(raw, i.K)
	}
	return raw
}

// maxProgram is the kernel's BPF_MAXINSNS.
const maxProgram = 4096

// ErrNotify is returned for a filter that hands calls to a listener, as a VM has
// none.
var ErrNotify = errors.New("SCMP_ACT_NOTIFY is not supported: the listener is a process of the host")

// Compile makes a filter of a spec's seccomp object. It returns nil for one
// that allows everything.
func Compile(s *specs.LinuxSeccomp) (*Filter, error) {
	if s.ListenerPath != "" {
		return nil, ErrNotify
	}
	flags, err := parseFlags(s.Flags)
	if err != nil {
		return nil, err
	}
	fallback, err := parseAction(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	rules, err := parseRules(s.Syscalls, fallback)
	if err != nil {
		return nil, err
	}
	if len(rules) == 0 && fallback == unix.SECCOMP_RET_ALLOW {
		return nil, nil
	}
	wanted, err := wantedABIs(s.Architectures)
	if err != nil {
		return nil, err
	}
	program := assemble(wanted, rules, fallback)
	if len(program) > maxProgram {
		return nil, fmt.Errorf("the filter has %d instructions, the kernel takes %d", len(program), maxProgram)
	}
	return &Filter{Program: program, Flags: flags}, nil
}

func parseFlags(names []specs.LinuxSeccompFlag) (flags uint, err error) {
	for _, name := range names {
		switch name {
		case "SECCOMP_FILTER_FLAG_TSYNC": // not in the Go types, but in the specification
			flags |= unix.SECCOMP_FILTER_FLAG_TSYNC
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			// It is about listeners, and the kernel refuses it without one.
		default:
			return 0, fmt.Errorf("unknown flag %q", name)
		}
	}
	return flags, nil
}

// wantedABIs are the native one and those that are asked for. Those of other
// machines never call this kernel.
func wantedABIs(archs []specs.Arch) (wanted []*abi, err error) {
	for _, name := range archs {
		if !slices.Contains(knownArchs, name) {
			return nil, fmt.Errorf("unknown architecture %q", name)
		}
	}
	for i := range abis {
		if i == 0 || slices.Contains(archs, abis[i].arch) {
			wanted = append(wanted, &abis[i])
		}
	}
	return wanted, nil
}

var knownArchs = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64,
	specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64,
	specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64,
	specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

// actions are the return values of a filter. Those marked carry an errno.
var actions = []struct {
	name  specs.LinuxSeccompAction
	value uint32
	errno bool
}{
	{specs.ActKill, unix.SECCOMP_RET_KILL_THREAD, false},
	{specs.ActKillThread, unix.SECCOMP_RET_KILL_THREAD, false},
	{specs.ActKillProcess, unix.SECCOMP_RET_KILL_PROCESS, false},
	{specs.ActTrap, unix.SECCOMP_RET_TRAP, false},
	{specs.ActErrno, unix.SECCOMP_RET_ERRNO, true},
	{specs.ActTrace, unix.SECCOMP_RET_TRACE, true},
	{specs.ActAllow, unix.SECCOMP_RET_ALLOW, false},
	{specs.ActLog, unix.SECCOMP_RET_LOG, false},
}

func parseAction(name specs.LinuxSeccompAction, errnoRet *uint) (uint32, error) {
	if name == specs.ActNotify {
		return 0, ErrNotify
	}
	for _, a := range actions {
		if a.name != name {
			continue
		}
		if !a.errno {
			if errnoRet != nil {
				return 0, fmt.Errorf("action %s takes no errnoRet", name)
			}
			return a.value, nil
		}
		errno := uint(unix.EPERM)
		if errnoRet != nil {
			errno = *errnoRet
		}
		if errno > unix.SECCOMP_RET_DATA {
			return 0, fmt.Errorf("errnoRet %d is out of range", errno)
		}
		return a.value | uint32(errno), nil
	}
	return 0, fmt.Errorf("unknown action %q", name)
}

// A rule is one way for a system call to get an action.
type rule struct {
	action uint32
	args   []specs.LinuxSeccompArg // none: always
}

// ruleSet has the rules of each system call by name. A name without rules has
// only ones with the default action.
type ruleSet map[string][]rule

func parseRules(syscalls []specs.LinuxSyscall, fallback uint32) (ruleSet, error) {
	set := ruleSet{}
	for _, call := range syscalls {
		if len(call.Names) == 0 {
			return nil, errors.New("rule without names")
		}
		action, err := parseAction(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("rule for %s: %w", call.Names[0], err)
		}
		if err := checkArgs(call.Args); err != nil {
			return nil, fmt.Errorf("rule for %s: %w", call.Names[0], err)
		}
		for _, name := range call.Names {
			if action == fallback {
				set[name] = set[name][:len(set[name]):len(set[name])]
				continue
			}
			set[name] = append(set[name], alternatives(action, call.Args)...)
		}
	}
	return set, nil
}

// alternatives splits a rule with several conditions on one argument, which
// could never hold together, as old Docker profiles mean it.
func alternatives(action uint32, args []specs.LinuxSeccompArg) []rule {
	seen := [6]bool{}
	for _, arg := range args {
		if seen[arg.Index] {
			var rules []rule
			for _, arg := range args {
				rules = append(rules, rule{action, []specs.LinuxSeccompArg{arg}})
			}
			return rules
		}
		seen[arg.Index] = true
	}
	return []rule{{action, args}}
}

func checkArgs(args []specs.LinuxSeccompArg) error {
	for _, arg := range args {
		if arg.Index > 5 {
			return fmt.Errorf("argument index %d is out of range", arg.Index)
		}
		switch arg.Op {
		case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual:
		default:
			return fmt.Errorf("unknown operator %q", arg.Op)
		}
	}
	return nil
}
