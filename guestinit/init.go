package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// initNamespaces are new in every container. A spec that leaves one out asks
// for the host's, which the guest does not have: --pid=host gets a pid namespace
// of its own all the same. The network is the VM's.
const initNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// takeInit gives the container its init, which waits in its namespaces and in the
// container's cgroup. It is the init that was forked ahead, if there is one and the spec
// allows that. A new one belongs to the calling thread, and is born into that thread's
// time namespace and into those that the container has in common with others.
func (c *container) takeInit() (err error) {
	var process specs.Process
	if c.spec.Process != nil {
		process = *c.spec.Process
	}
	memory, procs := scriptSize(process.Args, process.Env), procMounts(c.spec.Mounts)
	ownUsers, ownTime := c.has(specs.UserNamespace), c.has(specs.TimeNamespace)
	if c.init != nil && (ownUsers || ownTime || memory > aheadMemory || procs > aheadProcs) {
		c.init.kill()
		c.init = nil
	}
	if c.init == nil {
		if ownTime {
			if err := newTimeNamespace(c.spec.Linux.TimeOffsets); err != nil {
				return err
			}
		}
		flags, err := joinOthers(c.joins)
		if err != nil {
			return err
		}
		if ownUsers {
			flags |= unix.CLONE_NEWUSER
		}
		if c.init, err = forkWaiting(c.children, c.cgroup, flags, memory, procs); err != nil {
			return err
		}
	}
	if ownUsers {
		if err := c.ids.write(c.init.pid); err != nil {
			return err
		}
		if err := c.init.proceed(); err != nil {
			return err
		}
	}
	if err := c.setOOMScore(c.init.pid, process.OOMScoreAdj); err != nil {
		return err
	}
	if err := c.init.awaitReport(); err != nil {
		return err
	}
	if err := setRlimits(c.init.pid, process.Rlimits); err != nil {
		return err
	}
	return c.init.stdio.chownPipes(c.ids.uid(process.User.UID), c.ids.gid(process.User.GID))
}

// forkWaiting forks a container init into new namespaces and the cgroup, where it
// reports and waits for the rest of its script; in a new user namespace it waits
// for the mappings first. Memory and procs are what its script must have room for.
func forkWaiting(children *reaper, group *cgroup, flags uint64, memory, procs int) (p *process, err error) {
	if p, err = newProcess(guestproto.Init, memory); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.kill()
		}
	}()
	if err := p.stdio.openPipes(); err != nil {
		return nil, err
	}
	p.script.settle(p.stdio, flags&unix.CLONE_NEWUSER != 0)
	p.script.openProcs(procs)
	p.script.report()
	p.script.await()
	return p, p.fork(children, flags, group.fd)
}

// setOOMScore gives a process its score; it is born with guestinit's own. What is
// written with CAP_SYS_RESOURCE is the process's floor as well (proc(5)).
func (c *container) setOOMScore(pid int, score *int) error {
	value := 0
	if score != nil {
		value = *score
	}
	set := func(value int) error {
		return writeFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), strconv.Itoa(value))
	}
	if c.oomScoreFloor || value <= 0 {
		return set(value)
	}
	if err := set(0); err != nil {
		return err
	}
	return onThread(func() error {
		if err := setEffective(allCapabilities &^ (1 << unix.CAP_SYS_RESOURCE)); err != nil {
			return err
		}
		return set(value)
	})
}

// settle appends the init's first steps: it takes its descriptors, drops every
// other, becomes root in its user namespace, and roots its cgroup namespace in
// the container's cgroup, which it is in.
func (s *script) settle(std *stdio, userNamespace bool) {
	s.protect()
	s.takeStdio(std)
	if userNamespace {
		s.await() // for the mappings
		s.must("become root in the user namespace", unix.SYS_SETRESGID, 0, 0, 0)
		s.must("become root in the user namespace", unix.SYS_SETRESUID, 0, 0, 0)
	}
	s.must("make a cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	s.must("make a session", unix.SYS_SETSID)
}

// openProcs appends the first step to each proc that shall be mounted, which binds
// it to the caller's pid namespace. newFileSystem takes the file descriptors over.
func (s *script) openProcs(count int) {
	for range count {
		s.keep("open proc", unix.SYS_FSOPEN, s.cstring("proc"), unix.FSOPEN_CLOEXEC)
	}
}

// procMounts counts the procs among mounts.
func procMounts(mounts []specs.Mount) (count int) {
	for _, m := range mounts {
		if m.Type == "proc" {
			count++
		}
	}
	return count
}

// protect keeps the container's other processes from tracing this process before
// its execve, as its memory is a copy of guestinit's.
func (s *script) protect() {
	s.must("become undumpable", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
}

// takeStdio appends the steps that make the standard streams descriptors 0 to 2
// and close all others except the script's own.
func (s *script) takeStdio(std *stdio) {
	for i, fd := range std.childFds() {
		s.must("set up standard streams", unix.SYS_DUP3, fd, uintptr(i), 0)
	}
	sock := uintptr(s.sock)
	if sock > 3 {
		s.must("close descriptors", unix.SYS_CLOSE_RANGE, 3, sock-1, 0)
	}
	s.must("close descriptors", unix.SYS_CLOSE_RANGE, sock+1, uintptr(^uint32(0)), 0)
}

// newTimeNamespace gives the children of the calling thread a time namespace.
func newTimeNamespace(offsets map[string]specs.LinuxTimeOffset) error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("make a time namespace: %w", err)
	}
	for clock, offset := range offsets {
		line := fmt.Sprintf("%s %d %d\n", clock, offset.Secs, offset.Nanosecs)
		if err := writeFile("/proc/"+strconv.Itoa(unix.Gettid())+"/timens_offsets", line); err != nil {
			return err
		}
	}
	return nil
}

// openInitStdio gives a container init what it shall have in place of its pipes:
// a pty, now that the container's devpts is there, or /dev/null for stdin. The
// init was forked without them, so it opens them by their paths.
func (c *container) openInitStdio() error {
	p := c.spec.Process
	if p == nil {
		return nil
	}
	s := c.init.script
	if !p.Terminal {
		if !c.nullStdin {
			return nil
		}
		c.init.stdio.dropStdin()
		if !hasOwnDev(c.spec) { // what is in a /dev that is bound there nobody knows
			s.must("close the pipe", unix.SYS_CLOSE, 0)
			s.must("open /dev/null", unix.SYS_OPENAT, 0, s.cstring(os.DevNull), unix.O_RDWR, 0)
		}
		return nil
	}
	master, slave, err := openTerminal(c.ids.uid(p.User.UID), p.ConsoleSize, c.plainNewlines)
	if err != nil {
		return err
	}
	c.init.stdio.close()
	c.init.stdio.setTerminal(master, slave)
	if err := bindConsole(slave); err != nil {
		return err
	}
	s.must("close the pipe", unix.SYS_CLOSE, 0)
	s.must("open "+slave.Name(), unix.SYS_OPENAT, 0, s.cstring(slave.Name()), unix.O_RDWR|unix.O_NOCTTY, 0)
	s.must("set up standard streams", unix.SYS_DUP3, 0, 1, 0)
	s.must("set up standard streams", unix.SYS_DUP3, 0, 2, 0)
	return nil
}

// prepareInit appends the rest of the init's script. It runs on a thread in
// the container's root.
func (c *container) prepareInit() error {
	return c.finishScript(c.init, c.spec.Process)
}

// finishScript appends to a process's script what its process object asks for,
// with the execve at the end. It waits for the word to exec after a last report,
// when nothing but the execve is left that could fail. The calling thread is in
// the container's root.
func (c *container) finishScript(p *process, spec *specs.Process) error {
	if len(spec.Args) == 0 {
		return guestproto.Errorf(guestproto.CodeCommand, "process.args is empty")
	}
	env := withHome(spec.Env, spec.User.UID)
	path, _ := environment(env, "PATH")
	if err := c.impersonate(spec); err != nil {
		return err
	}
	name := spec.Args[0]
	if p.file != "" {
		name = p.file
	}
	file, err := lookPath(name, path, spec.Cwd)
	if err != nil {
		return err
	}
	s := p.script
	if spec.Terminal {
		s.must("make the terminal the controlling one", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	if err := s.attributes(spec, c); err != nil {
		return err
	}
	err = s.confine(spec, c.filter, func() {
		s.report()
		s.await()
	})
	if err != nil {
		return err
	}
	s.must("exec "+file, unix.SYS_EXECVE, s.cstring(file), s.cstrings(spec.Args), s.cstrings(env))
	return nil
}

// impersonate gives the calling thread the process's user, groups and
// capabilities as far as the kernel looks at them for access to files.
func (c *container) impersonate(spec *specs.Process) error {
	sets, err := parseCapabilities(spec.Capabilities)
	if err != nil {
		return err
	}
	groups := make([]uint32, 0, len(spec.User.AdditionalGids))
	for _, gid := range spec.User.AdditionalGids {
		groups = append(groups, uint32(c.ids.gid(gid)))
	}
	return becomeForFiles(c.ids.uid(spec.User.UID), c.ids.gid(spec.User.GID), groups, sets.effective)
}
