package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// exec starts a further process in the container and returns its pid there.
func (c *container) exec(req *guestproto.ExecRequest) (int, error) {
	if req.ID == guestproto.Init || req.Process == nil {
		return 0, guestproto.Errorf(guestproto.CodeBadRequest, "exec without id or process")
	}
	p, err := newProcess(req.ID, scriptSize(req.Process.Args, req.Process.Env))
	if err != nil {
		return 0, err
	}
	if err := c.reserve(p); err != nil {
		p.kill()
		return 0, err
	}
	pid, err := c.startExec(p, req)
	if err != nil {
		c.mu.Lock()
		delete(c.execs, p.id)
		c.mu.Unlock()
		p.kill()
		return 0, err
	}
	return pid, nil
}

// reserve makes p known by its id.
func (c *container) reserve(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return guestproto.Errorf(guestproto.CodeNoProcess, "container not running")
	}
	if c.execs[p.id] != nil {
		return guestproto.Errorf(guestproto.CodeBadRequest, "process id %q is in use", p.id)
	}
	c.execs[p.id] = p
	return nil
}

func (c *container) startExec(p *process, req *guestproto.ExecRequest) (pid int, err error) {
	group, err := c.execCgroup(req.Cgroup)
	if err != nil {
		return 0, err
	}
	defer group.close()
	joins, err := c.openScriptNamespaces()
	if err != nil {
		return 0, err
	}
	defer joins.close()
	if err := onThread(func() error { return c.forkExec(p, req, group, joins) }); err != nil {
		return 0, err
	}
	if err := p.awaitReport(); err != nil {
		return 0, err
	}
	pid = int(p.script.head.result[0])
	if err := c.setOOMScore(p.pid, req.Process.OOMScoreAdj); err != nil {
		return 0, err
	}
	if err := p.proceed(); err != nil {
		return 0, err
	}
	return pid, p.awaitExec()
}

// forkExec forks an exec process. The calling thread joins the container's
// namespaces first, so that the process is born in them.
func (c *container) forkExec(p *process, req *guestproto.ExecRequest, group *cgroup, joins scriptNamespaces) error {
	spec := req.Process
	if err := joinNamespaces(c.init.pidfd, joinedNamespaces); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return guestproto.Errorf(guestproto.CodeNoProcess, "container not running")
		}
		return err
	}
	if err := c.openExecStdio(p, req); err != nil {
		return err
	}
	s := p.script
	s.protect()
	if err := s.setRlimits(spec.Rlimits); err != nil {
		return err
	}
	joins.append(s)
	s.takeStdio(p.stdio)
	s.must("make a session", unix.SYS_SETSID)
	s.keep("getpid", unix.SYS_GETPID)
	if a := spec.ExecCPUAffinity; a != nil && a.Final != "" {
		if err := s.setAffinity(a.Final); err != nil {
			return err
		}
	}
	if err := c.finishScript(p, spec); err != nil {
		return err
	}
	// The child inherits the thread's credentials, and its script is root's.
	if err := becomeForFiles(0, 0, nil, allCapabilities); err != nil {
		return err
	}
	return p.fork(c.children, 0, group.fd)
}

func (c *container) openExecStdio(p *process, req *guestproto.ExecRequest) error {
	spec := req.Process
	uid, gid := c.ids.uid(spec.User.UID), c.ids.gid(spec.User.GID)
	if !spec.Terminal {
		if err := p.stdio.openPipes(); err != nil {
			return err
		}
		if err := p.stdio.chownPipes(uid, gid); err != nil || !req.NullStdin {
			return err
		}
		return p.stdio.setStdin(c.null)
	}
	master, slave, err := openTerminal(uid, spec.ConsoleSize, req.PlainNewlines)
	if err != nil {
		return err
	}
	p.stdio.setTerminal(master, slave)
	return nil
}

// execCgroup opens the cgroup for an exec process: the one at path below the
// container's. A container that has handed its own cgroup's controllers down,
// as a systemd or a dockerd inside does, can have no process in it any more;
// then, as with runc, the process goes where the init has gone.
func (c *container) execCgroup(path string) (*cgroup, error) {
	dir := filepath.Join(c.cgroup.dir, filepath.Join("/", path))
	if path == "" {
		if text, err := os.ReadFile(dir + "/cgroup.subtree_control"); err == nil && strings.TrimSpace(string(text)) != "" {
			if dir, err = cgroupOf(c.init.pid); err != nil {
				return nil, err
			}
		}
	}
	return openCgroup(dir)
}

// scriptNamespaces are the namespaces that an exec process has to enter by its
// script, as its parent cannot; see joinedNamespaces.
type scriptNamespaces struct {
	cgroup     *os.File
	user, time *os.File // nil for none
}

func (c *container) openScriptNamespaces() (joins scriptNamespaces, err error) {
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		file string
		to   **os.File
	}{
		{specs.CgroupNamespace, "cgroup", &joins.cgroup},
		{specs.UserNamespace, "user", &joins.user},
		{specs.TimeNamespace, "time", &joins.time},
	} {
		if ns.kind != specs.CgroupNamespace && !c.has(ns.kind) {
			continue
		}
		if *ns.to, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", c.init.pid, ns.file)); err != nil {
			joins.close()
			return joins, guestproto.Errorf(guestproto.CodeNoProcess, "container not running")
		}
	}
	return joins, nil
}

func (j scriptNamespaces) close() {
	for _, f := range []*os.File{j.cgroup, j.user, j.time} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// append adds the steps that enter the namespaces; the user namespace last,
// since the rights to enter the others go with it.
func (j scriptNamespaces) append(s *script) {
	s.must("join the cgroup namespace", unix.SYS_SETNS, j.cgroup.Fd(), unix.CLONE_NEWCGROUP)
	if j.time != nil {
		s.must("join the time namespace", unix.SYS_SETNS, j.time.Fd(), unix.CLONE_NEWTIME)
	}
	if j.user != nil {
		s.must("join the user namespace", unix.SYS_SETNS, j.user.Fd(), unix.CLONE_NEWUSER)
		s.must("become root in the user namespace", unix.SYS_SETRESGID, 0, 0, 0)
		s.must("become root in the user namespace", unix.SYS_SETRESUID, 0, 0, 0)
	}
}
