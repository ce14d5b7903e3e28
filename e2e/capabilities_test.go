package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// everyCapability is in the order of the kernel's numbers (linux/capability.h).
var everyCapability = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID
	CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER
	CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE
	CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP
	CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF
	CAP_CHECKPOINT_RESTORE`)

// capBits is how /proc shows a set.
func capBits(names []string) string {
	bits := uint64(0)
	for _, name := range names {
		bits |= 1 << slices.Index(everyCapability, name)
	}
	return fmt.Sprintf("%016x", bits)
}

// capabilities are those that a container can be given: in a VM every one, from runc what the machine's root has.
func (e *env) capabilities() []string {
	if e.rt.isVM() {
		return everyCapability
	}
	return e.ownCapabilities()
}

// ownCapabilities are those that a process of the machine's root can have.
func (e *env) ownCapabilities() []string {
	status, err := os.ReadFile("/proc/self/status")
	e.noErr(err)
	_, line, _ := strings.Cut(string(status), "CapBnd:")
	bits, err := strconv.ParseUint(strings.Fields(line)[0], 16, 64)
	e.noErr(err)
	return slices.DeleteFunc(slices.Clone(everyCapability), func(name string) bool {
		return bits&(1<<slices.Index(everyCapability, name)) == 0
	})
}

func but(all []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == name })
}

// showCaps is a process that prints its five sets, as CapInh: ... lines.
func showCaps(user uint32, caps specs.LinuxCapabilities) *specs.Process {
	return &specs.Process{
		Args: []string{"grep", "^Cap", "/proc/self/status"}, Cwd: "/", Env: []string{"PATH=/bin"},
		User: specs.User{UID: user, GID: user}, Capabilities: &caps,
	}
}

// rootWith and userWith give sets that outlive an execve: the kernel makes root's permitted set of the bounding one, and
// another user keeps what is ambient (capabilities(7)).
func rootWith(names []string) *specs.Process {
	return showCaps(0, specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names})
}

func userWith(names []string) *specs.Process {
	return showCaps(1000, specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names, Inheritable: names, Ambient: names})
}

// shownCaps is what showCaps prints with the sets of p.
func shownCaps(p *specs.Process) string {
	c := p.Capabilities
	return fmt.Sprintf("CapInh:\t%s\nCapPrm:\t%s\nCapEff:\t%s\nCapBnd:\t%s\nCapAmb:\t%s\n",
		capBits(c.Inheritable), capBits(c.Permitted), capBits(c.Effective), capBits(c.Bounding), capBits(c.Ambient))
}

// Each of the 41 added alone and dropped alone, by exec processes of their own sets in one container.
func TestEveryCapabilityByExec(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("caps", "echo ready; exec sleep 1000", nil)
		c := h.create(b)
		c.start()
		h.expect(c.out, "ready")
		all := e.capabilities()
		processes := map[string]*specs.Process{
			"all as root": rootWith(all), "all as user": userWith(all), "none as root": rootWith(nil), "none as user": userWith(nil),
		}
		for _, name := range all {
			processes["add "+name+" as root"] = rootWith([]string{name})
			processes["drop "+name+" as user"] = userWith(but(all, name))
		}
		var wait sync.WaitGroup
		turns := make(chan struct{}, 4)
		for i, name := range slices.Sorted(maps.Keys(processes)) {
			p := processes[name]
			text, err := json.Marshal(p)
			h.noErr(err)
			file := filepath.Join(b.dir, fmt.Sprintf("process-%d.json", i))
			h.noErr(os.WriteFile(file, text, 0o644))
			turns <- struct{}{}
			wait.Go(func() {
				defer func() { <-turns }()
				if r := h.cmd("exec", "--process", file, b.id); r.code != 0 || r.stdout != shownCaps(p) {
					h.Errorf("%s: %s\nwant %s", name, r, shownCaps(p))
				}
			})
		}
		wait.Wait()
		h.must("kill", b.id, "KILL")
		c.end()
	})
}

// The same of the container init.
func TestEveryCapabilityByInit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		all := e.capabilities()
		for i, p := range []*specs.Process{rootWith(all), userWith(but(all, "CAP_CHOWN")), rootWith(all[len(all)-1:]), userWith(nil)} {
			b := h.bundle(fmt.Sprintf("init-caps-%d", i), "", func(s *specs.Spec) { s.Process = p })
			r := h.cmd("run", "--bundle", b.dir, b.id)
			h.wantCode(r, 0)
			h.want(fmt.Sprintf("sets of init %d", i), r.stdout, shownCaps(p))
		}
	})
}

// enoughForGrep are the system calls of a shell that has busybox's grep read a file.
var enoughForGrep = strings.Fields(`access arch_prctl brk capget capset chdir clone clone3 close dup dup2 dup3 execve execveat exit exit_group faccessat
	fchdir fcntl fork fstat fstatfs futex getcwd getdents64 getegid geteuid getgid getpgrp getpid getppid getrandom gettid getuid ioctl lseek lstat madvise mmap
	mprotect mremap munmap nanosleep newfstatat open openat pipe pipe2 poll prctl prlimit64 read readlink readlinkat rseq rt_sigaction rt_sigprocmask rt_sigreturn
	seccomp set_robust_list set_tid_address setgid setgroups setresgid setresuid setuid sigaltstack stat statx tgkill umask uname vfork wait4 write writev`)

// An engine that lacks a capability leaves it out of ALL: what counts is all that the caller has.
func TestAllThatTheCallerHas(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		own := but(e.ownCapabilities(), "CAP_SYS_PACCT")
		filters := func(name string, caps []string) string {
			b := h.bundle(name, "grep ^Seccomp: /proc/self/status", func(s *specs.Spec) {
				s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
				s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: enoughForGrep, Action: specs.ActAllow}}}
			})
			r := h.cmdAs([]string{"setpriv", "--bounding-set", "-sys_pacct"}, "run", "--bundle", b.dir, b.id)
			h.wantCode(r, 0)
			return r.stdout
		}
		h.want("with all of the caller's", filters("callers-all", own), "Seccomp:\t0\n")
		h.want("with all but one", filters("callers-but", but(own, "CAP_KILL")), "Seccomp:\t2\n")
	})
}

// exec --cap adds to the bounding, effective and permitted sets, never to the inheritable one, and so to the ambient one only
// what can be inherited already.
func TestCapabilityOfExec(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		own, inherited := []string{"CAP_KILL", "CAP_AUDIT_WRITE", "CAP_CHOWN"}, []string{"CAP_KILL", "CAP_AUDIT_WRITE"}
		b := h.bundle("exec-cap", "echo ready; exec sleep 1000", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{
				Bounding: own, Effective: own, Permitted: own, Inheritable: inherited, Ambient: []string{"CAP_KILL"},
			}
		})
		c := h.create(b)
		c.start()
		h.expect(c.out, "ready")
		for _, tc := range []struct {
			name, user string
			ambient    []string
		}{
			{"CAP_NET_RAW", "0", []string{"CAP_KILL"}},
			{"CAP_NET_RAW", "1000", []string{"CAP_KILL"}},
			{"CAP_AUDIT_WRITE", "1000", inherited},
		} {
			all := append(slices.Clone(own), tc.name)
			want := specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: inherited, Ambient: tc.ambient}
			if tc.user != "0" { // execve leaves it what is ambient
				want.Effective, want.Permitted = tc.ambient, tc.ambient
			}
			got := h.must("exec", "--cap", tc.name, "--user", tc.user, b.id, "grep", "^Cap", "/proc/self/status")
			h.want(tc.name+" of user "+tc.user, got, shownCaps(&specs.Process{Capabilities: &want}))
		}
		r := h.cmd("exec", "--cap", "CAP_NOSUCH", b.id, "true")
		h.wantCode(r, 0)
		h.wantPart("warning", r.stderr, "CAP_NOSUCH")
		h.must("kill", b.id, "KILL")
		c.end()
	})
}

// A name that no kernel knows is left out, named, and costs no other.
func TestUnknownCapability(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		p := rootWith(e.capabilities())
		want := shownCaps(p)
		for _, set := range []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted} {
			*set = append(slices.Clone(*set), "CAP_CAP_SYS_ADMIN")
		}
		b := h.bundle("unknown-cap", "", func(s *specs.Spec) { s.Process = p })
		r := h.cmd("run", "--bundle", b.dir, b.id)
		h.wantCode(r, 0)
		h.want("sets", r.stdout, want)
		h.wantPart("warning", r.stderr, "CAP_CAP_SYS_ADMIN")
	})
}

// What docker's flags make of it, under runc and in the VM.
func TestCapabilityFlags(t *testing.T) {
	eachRuntime(t, func(e *env) {
		show := func(args ...string) string {
			return e.runOK(append(args, "busybox", "sh", "-c", "grep '^Cap[PEB]' /proc/self/status | cut -f 2 | xargs")...)
		}
		const standard = 0xa80425fb
		sets := func(bits uint64) string {
			return strings.TrimSuffix(strings.Repeat(fmt.Sprintf("%016x ", bits), 3), " ")
		}
		e.want("one more", show("--cap-add", "SYS_PTRACE"), sets(standard|1<<19))
		e.want("one less", show("--cap-drop", "CHOWN"), sets(standard&^1))
		if !e.rt.isVM() {
			return // the machine's own root may not have all
		}
		all, err := strconv.ParseUint(e.allOfDocker(), 16, 64)
		e.noErr(err)
		e.want("ALL", show("--cap-add", "ALL"), sets(all))
		e.want("ALL but one", show("--cap-add", "ALL", "--cap-drop", "SYS_ADMIN"), sets(all&^(1<<21)))
		e.want("of a user", e.runOK("--cap-add", "ALL", "-u", "1000", "busybox", "sh", "-c", "grep '^Cap[PEB]' /proc/self/status | cut -f 2 | xargs"),
			fmt.Sprintf("%016x %016x %016x", 0, 0, all))
	})
}
