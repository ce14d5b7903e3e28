package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
)

// A container is built once and lives as long as its init.
type container struct {
	id     string
	spec   *specs.Spec
	ids    idMaps
	filter *guestproto.SeccompFilter // nil for none
	// submounts are those of CreateRequest.
	submounts map[string][]string
	sockets   []hostSocket // of CreateRequest
	joins     []join
	// files are the sources of the mounts that show a single file.
	files    []string
	cgroup   *cgroup
	devices  *deviceFilter // nil for none
	oom      *oomWatch     // nil where the kernel has no memory limits
	children *reaper
	init     *process
	null     *os.File // /dev/null
	// nullStdin says that the init has it for stdin.
	nullStdin bool
	// plainNewlines is for the init's terminal.
	plainNewlines bool
	// oomScoreFloor is that of CreateRequest.
	oomScoreFloor bool
	// procs counts the proc mounts that have been made.
	procs int
	// steps records how it is built; nil for nobody wants to know.
	steps *trace.Recorder

	// starting is held by start.
	starting sync.Mutex

	mu      sync.Mutex
	started bool
	over    bool // it is being taken away
	execs   map[string]*process
	// ended are ids of execs in the order in which they were waited for.
	ended []string

	finishOnce sync.Once
	initStatus guestproto.WaitReply
}

// createContainer builds the container up to the point before its execve. The
// groundwork is used up also where that fails: then the VM ends, or the caller takes
// away what there is of the container.
func createContainer(children *reaper, ground *groundwork, req *guestproto.CreateRequest, joins []join, steps *trace.Recorder) (*container, error) {
	c := &container{
		id: req.ID, spec: req.Spec, filter: req.Seccomp, submounts: req.Submounts, joins: joins, children: children, steps: steps, execs: map[string]*process{},
		cgroup: ground.cgroup, devices: ground.filter, oom: ground.oom, init: ground.init, null: ground.null, nullStdin: req.NullStdin, plainNewlines: req.PlainNewlines,
		oomScoreFloor: req.OOMScoreFloor,
	}
	if err := c.checkSpec(); err != nil {
		return c, err
	}
	var err error
	if c.sockets, err = openSockets(req.Sockets); err != nil {
		return c, err
	}
	if err := c.step("set up the cgroup", c.setupCgroup); err != nil {
		return c, fmt.Errorf("cgroup: %w", err)
	}
	filterDevices := func() error { return c.filterDevices(req.DeviceFilter) }
	if err := c.step("attach the device filter", filterDevices); err != nil {
		return c, err
	}
	return c, onThread(c.build)
}

// step runs one of the steps that build the container, which the trace shows.
func (c *container) step(name string, f func() error) error {
	defer c.steps.Begin(name)()
	return f()
}

// checkSpec refuses what the rest would trip over and fills in empty objects.
func (c *container) checkSpec() error {
	switch {
	case c.id == "":
		return guestproto.Errorf(guestproto.CodeBadRequest, "the container has no id")
	case c.spec == nil || c.spec.Root == nil:
		return guestproto.Errorf(guestproto.CodeBadRequest, "the spec has no root")
	}
	if c.spec.Linux == nil {
		c.spec.Linux = &specs.Linux{}
	}
	if c.has(specs.UserNamespace) {
		c.ids = idMaps{c.spec.Linux.UIDMappings, c.spec.Linux.GIDMappings}
		if len(c.ids.uids) == 0 || len(c.ids.gids) == 0 {
			return errors.New("user namespace without uidMappings and gidMappings")
		}
	}
	return nil
}

func (c *container) has(namespace specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(c.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == namespace })
}

func (c *container) setupCgroup() error {
	settings, err := cgroupSettings(c.spec.Linux.Resources)
	if err != nil {
		return err
	}
	if err := c.cgroup.apply(settings); err != nil {
		return err
	}
	return c.cgroup.delegate(c.ids)
}

// build makes the container init and everything around it. It runs on a thread of
// its own. At first this thread sees the guest's files, for the sources of the
// mounts. Then it follows the init into the init's namespaces. The init's script
// does only what the init itself has to do.
func (c *container) build() error {
	for source, below := range c.submounts {
		showSubmounts(source, below)
	}
	rootfs, err := openTree(c.spec.Root.Path, true)
	if err != nil {
		return fmt.Errorf("rootfs: %w", err)
	}
	defer unix.Close(rootfs)
	mounts, err := c.planMounts()
	if err != nil {
		return err
	}
	defer closeMounts(mounts)
	if err := c.step("take the init", c.takeInit); err != nil {
		return err
	}
	if err := joinNamespaces(c.init.pidfd, joinedNamespaces|unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	if err := c.setNames(); err != nil {
		return err
	}
	if err := setSysctls(c.spec.Linux.Sysctl); err != nil {
		return err
	}
	if err := c.buildRootfs(rootfs, mounts); err != nil {
		return err
	}
	if c.spec.Process == nil {
		return nil // start will be the error
	}
	if err := c.step("prepare the init", c.prepareInit); err != nil {
		return err
	}
	if err := c.init.proceed(); err != nil {
		return err
	}
	return c.step("await the init", c.init.awaitReport)
}

// buildRootfs makes the container's mounts and leaves the calling thread in its
// root.
func (c *container) buildRootfs(rootfs int, mounts []*preparedMount) error {
	prepare := func() error { return c.prepareMounts(mounts) }
	if err := c.step("prepare the mounts", prepare); err != nil {
		return err
	}
	if err := c.step("enter the rootfs", func() error { return enterRootfs(rootfs) }); err != nil {
		return fmt.Errorf("rootfs: %w", err)
	}
	attached := c.steps.Begin("attach the mounts, fill /dev")
	for _, m := range mounts {
		if err := m.attach(c.ids); err != nil {
			return fmt.Errorf("mount %s: %w", m.spec.Destination, err)
		}
	}
	if !hasOwnDev(c.spec) {
		if err := populateDev(c.spec, c.ids); err != nil {
			return err
		}
	}
	attached()
	if err := c.openInitStdio(); err != nil {
		return err
	}
	if p := c.spec.Process; p != nil && p.Cwd != "" {
		if err := makeDirs(p.Cwd, c.ids); err != nil {
			return fmt.Errorf("cwd: %w", err)
		}
	}
	for _, m := range mounts {
		if m.fillFirst {
			if err := setReadonly(m.spec.Destination); err != nil {
				return err
			}
		}
	}
	return c.finishRootfs()
}

// setNames sets the names of the calling thread's uts namespace.
func (c *container) setNames() error {
	hostname := c.spec.Hostname
	if hostname != "" {
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", hostname, err)
		}
	}
	if domain := c.spec.Domainname; domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return fmt.Errorf("set domainname %q: %w", domain, err)
		}
	}
	return nil
}

// setSysctls sets every kernel parameter asked for, those of the calling
// thread's namespaces and those of the whole kernel: it is the container's own.
func setSysctls(sysctls map[string]string) error {
	for _, key := range slices.Sorted(mapKeys(sysctls)) {
		if err := writeFile(sysctlPath(key), sysctls[key]); err != nil {
			return fmt.Errorf("sysctl %s: %w", key, err)
		}
	}
	return nil
}

// sysctlPath turns a name into a path. As for sysctl(8), the first separator
// decides: with a dot first, slashes stand for dots inside names
// (net.ipv4.conf.eth0/100.forwarding).
func sysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		key = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	return "/proc/sys/" + strings.ReplaceAll(key, "..", "")
}

// start runs the startContainer hooks and lets the container init exec.
func (c *container) start(state *specs.State) error {
	if c.spec.Process == nil {
		return errors.New("the spec has no process to start")
	}
	c.mu.Lock()
	started := c.started
	c.started = true
	c.mu.Unlock()
	if started {
		return guestproto.Errorf(guestproto.CodeBadRequest, "the container has been started already")
	}
	c.starting.Lock()
	defer c.starting.Unlock()
	if err := c.runHooks(state); err != nil {
		return err
	}
	askAnew(c.files)
	if err := c.init.proceed(); err != nil {
		return guestproto.Errorf(guestproto.CodeNoProcess, "the container's process has ended")
	}
	return c.init.awaitExec()
}

// process finds a process by its id.
func (c *container) process(id string) (*process, error) {
	if id == guestproto.Init {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[id]; p != nil {
		return p, nil
	}
	return nil, guestproto.Errorf(guestproto.CodeNoProcess, "no such process")
}

// signalAll sends a signal to every process of the container.
func (c *container) signalAll(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return c.cgroup.kill()
	}
	pids, err := c.cgroup.pids()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return guestproto.Errorf(guestproto.CodeNoProcess, "no such process")
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("send signal %d: %w", int(sig), err)
		}
	}
	return nil
}

// mostEnded is how many ended execs are kept for the sake of output that nobody has
// asked for yet.
const mostEnded = 128

// wait blocks until the process has ended and what it wrote is in its streams,
// and for the container init until everything of the container is gone.
func (c *container) wait(p *process) *guestproto.WaitReply {
	<-p.ended
	if p == c.init {
		c.finishOnce.Do(c.finish)
		return &c.initStatus
	}
	reply := waitReply(p.status)
	reply.Stdout, reply.Stderr = p.stdio.drain()
	c.forget(p)
	return reply
}

func waitReply(status unix.WaitStatus) *guestproto.WaitReply {
	if status.Signaled() {
		return &guestproto.WaitReply{ExitStatus: guestproto.ExitStatus{Signal: int(status.Signal())}}
	}
	return &guestproto.WaitReply{ExitStatus: guestproto.ExitStatus{Code: status.ExitStatus()}}
}

// forget drops an exec process that has ended. If some of its output has not been
// asked for yet, the process stays, and the oldest such process goes when there are
// too many.
func (c *container) forget(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.id] != p {
		return
	}
	id := p.id
	if !p.stdio.allAsked() {
		if !slices.Contains(c.ended, id) {
			c.ended = append(c.ended, id)
		}
		if len(c.ended) <= mostEnded {
			return
		}
		id, c.ended = c.ended[0], c.ended[1:]
	}
	if old := c.execs[id]; old != nil {
		old.forget()
		delete(c.execs, id)
	}
}

// close lets go of what guestinit holds for a container that has ended.
func (c *container) close() {
	c.cgroup.close()
	if c.devices != nil {
		_ = unix.Close(c.devices.fd)
	}
	if c.oom != nil {
		c.oom.close()
	}
}

// finish follows the end of the container init: it ends whatever is left,
// waits for the output and brings the files to the host.
func (c *container) finish() {
	c.initStatus = *waitReply(c.init.status)
	c.initStatus.OOMKilled = c.cgroup.oomKills() > 0
	if err := c.cgroup.kill(); err != nil {
		logf("kill what is left of the container: %v", err)
	}
	c.init.stdio.drain()
	c.init.stdio.cut()
	flushShare()
}

// flushShare writes to the host what a process wrote through a memory mapping and
// the kernel still holds. Everything else is there already, as virtio-fs writes
// through. So mostly there is nothing to do. flushShare looks first, because a
// flush makes the host write its disk. The share stays mounted until the VM ends.
func flushShare() {
	// Folds the counters of each CPU into the sums that meminfo shows.
	if err := writeFile("/proc/sys/vm/stat_refresh", "1"); err != nil {
		debugf("%v", err)
	}
	meminfo, err := readFile("/proc/meminfo")
	if err != nil {
		logf("look for what is to be written: %v", err)
	}
	if err != nil || hasDirtyPages(meminfo) {
		unix.Sync() // not syncfs: each mount of the host's below the share is a file system of its own
	}
}

// hasDirtyPages reads /proc/meminfo.
func hasDirtyPages(meminfo string) bool {
	for line := range strings.Lines(meminfo) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "Dirty:", "Writeback:", "WritebackTmp:":
			if fields[1] != "0" {
				return true
			}
		}
	}
	return false
}
