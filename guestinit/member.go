package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
)

// A member is a further container of the VM: one of the pod's whose sandbox is the first
// one. It comes and goes while the others run.

// createMember makes one. If that fails, nothing of it is left.
func (s *server) createMember(name string, req *guestproto.CreateRequest, steps *trace.Recorder) error {
	if strings.Contains(name, "/") {
		return guestproto.Errorf(guestproto.CodeBadRequest, "container name %q", name)
	}
	joins, group, err := s.reserve(name, req.Joins)
	if err != nil {
		return err
	}
	c, err := makeMember(s.children, group, req, joins, steps)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.making, name)
	if err == nil {
		s.containers[name] = c
	}
	return err
}

// reserve keeps a name for a member, finds the containers that the member joins, and says
// where its cgroup shall be.
func (s *server) reserve(name string, wanted map[specs.LinuxNamespaceType]string) (joins []join, group string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[guestproto.First] == nil {
		return nil, "", guestproto.Errorf(guestproto.CodeBadRequest, "the VM has no container yet that another could be beside")
	}
	if s.containers[name] != nil || s.making[name] {
		return nil, "", guestproto.Errorf(guestproto.CodeBadRequest, "the VM has a container %s already", name)
	}
	for kind, whose := range wanted {
		flag, ok := joinable[kind]
		if !ok {
			return nil, "", guestproto.Errorf(guestproto.CodeBadRequest, "containers cannot have a %s namespace in common", kind)
		}
		other := s.containers[whose]
		if other == nil {
			return nil, "", guestproto.Errorf(guestproto.CodeBadRequest, "the container whose %s namespace is to be joined is not in the VM", kind)
		}
		joins = append(joins, join{flag, other})
	}
	s.making[name] = true
	s.members++
	return joins, filepath.Join(containersCgroup, "member-"+strconv.Itoa(s.members)), nil
}

func makeMember(children *reaper, dir string, req *guestproto.CreateRequest, joins []join, steps *trace.Recorder) (*container, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	group, err := newCgroup(dir)
	if err != nil {
		return nil, errors.Join(err, null.Close())
	}
	oom, err := watchOOM(group)
	if err != nil {
		logf("%v", err) // a kernel without memory limits
	}
	c, err := createContainer(children, &groundwork{cgroup: group, oom: oom, null: null}, req, joins, steps)
	if err != nil {
		return nil, errors.Join(err, c.takeAway())
	}
	return c, nil
}

// joinable are the namespaces that containers may have in common, beside the network.
var joinable = map[specs.LinuxNamespaceType]int{
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.PIDNamespace: unix.CLONE_NEWPID, specs.UTSNamespace: unix.CLONE_NEWUTS,
}

// join is a namespace that is another container's.
type join struct {
	flag  int // of clone(2)
	other *container
}

// joinOthers moves the calling thread, for the pid its children, into namespaces of
// others. It returns the flags of those that its child shall have new.
func joinOthers(joins []join) (fresh uint64, err error) {
	fresh = initNamespaces
	for _, j := range joins {
		if err := j.other.enter(j.flag); err != nil {
			return 0, err
		}
		fresh &^= uint64(j.flag)
	}
	return fresh, nil
}

// enter moves the calling thread into namespaces of the container's.
func (c *container) enter(which int) error {
	c.init.pidfdLock.Lock()
	defer c.init.pidfdLock.Unlock()
	err := error(unix.ESRCH)
	if c.init.pidfd >= 0 {
		err = unix.Setns(c.init.pidfd, which)
	}
	if errors.Is(err, unix.ESRCH) {
		return guestproto.Errorf(guestproto.CodeNoProcess, "join namespaces of container %s: it has ended", c.id)
	}
	if err != nil {
		return fmt.Errorf("join namespaces of container %s: %w", c.id, err)
	}
	return nil
}

// joinedShm copies the mount at /dev/shm of the container whose ipc namespace is joined.
func (c *container) joinedShm() (fd int, err error) {
	i := slices.IndexFunc(c.joins, func(j join) bool { return j.flag == unix.CLONE_NEWIPC })
	if i < 0 {
		return -1, errors.New("no ipc namespace is joined")
	}
	other := c.joins[i].other
	err = onThread(func() (err error) {
		if err := other.enter(unix.CLONE_NEWNS); err != nil {
			return err
		}
		fd, err = openTree("/dev/shm", false)
		return err
	})
	return fd, err
}

// freeze has the container's processes stand still, or go on.
func (c *container) freeze(req *guestproto.FreezeRequest) (any, error) {
	value := "0"
	if req.Frozen {
		value = "1"
	}
	if err := writeFile(filepath.Join(c.cgroup.dir, "cgroup.freeze"), value); err != nil {
		return nil, err
	}
	return nil, c.cgroup.await("frozen "+value, freezePatience)
}

const (
	// freezePatience is less than the host waits for the answer.
	freezePatience = 8 * time.Second
	// endPatience is how long what was killed may take to end.
	endPatience = 10 * time.Second
)

// await waits until the cgroup's events have a line (cgroup-v2, cgroup.events).
func (g *cgroup) await(line string, patience time.Duration) error {
	path := filepath.Join(g.dir, "cgroup.events")
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	defer changes.Close()
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	if err := changes.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for buf := make([]byte, 4096); ; {
		text, err := readFile(path)
		if err != nil {
			return err
		}
		if slices.Contains(strings.Split(text, "\n"), line) {
			return nil
		}
		if _, err := changes.Read(buf); err != nil {
			return fmt.Errorf("wait for %q in %s: %w", line, path, err)
		}
	}
}

// remove takes a member away, and with it what the guest keeps of its files.
func (s *server) remove(name string, req *guestproto.RemoveRequest) (any, error) {
	if name == guestproto.First || strings.Contains(name, "/") {
		return nil, guestproto.Errorf(guestproto.CodeBadRequest, "container name %q", name)
	}
	s.mu.Lock()
	c, busy := s.containers[name], s.making[name]
	if !busy {
		delete(s.containers, name)
		s.making[name] = true
	}
	s.mu.Unlock()
	if busy {
		return nil, guestproto.Errorf(guestproto.CodeBadRequest, "container %s is being made or removed", name)
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.making, name)
	}()
	if c != nil {
		if err := c.takeAway(); err != nil {
			return nil, err
		}
	}
	err := leaveShare(guestproto.MemberName(name))
	for _, volume := range req.Volumes {
		err = errors.Join(err, leaveShare(guestproto.VolumeName(filepath.Base(volume))))
	}
	return nil, err
}

// takeAway ends what is left of a member.
func (c *container) takeAway() error {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	if err := c.end(); err != nil {
		return err
	}
	c.starting.Lock() // a start has seen the end of the init by now
	defer c.starting.Unlock()
	if c.init != nil {
		c.init.kill()
	}
	c.mu.Lock()
	for id, p := range c.execs {
		p.forget()
		delete(c.execs, id)
	}
	c.mu.Unlock()
	c.close()
	_ = c.null.Close()
	return nil
}

// mostEnds is how often processes are ended that were just being forked by guestinit.
const mostEnds = 5

// end kills all processes and removes the cgroup.
func (c *container) end() (err error) {
	for range mostEnds {
		if err := c.cgroup.kill(); err != nil {
			return err
		}
		if err := c.cgroup.await("populated 0", endPatience); err != nil {
			return err
		}
		if err = c.cgroup.remove(); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	return err
}

// remove removes the cgroup and those below it, which are empty.
func (g *cgroup) remove() error {
	var dirs []string
	if err := g.walk(func(dir string) { dirs = append(dirs, dir) }); err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
	return nil
}

// leaveShare unmounts what the guest has of the share at name. The host has taken the mounts away
// there and has left the directory that they were on. Its removal has virtiofsd and the
// kernel let go of the files, once the kernel has seen that it is another
// directory by now: mkdir(2) makes it look at the name, however lately it has done so.
func leaveShare(name string) error {
	dir := filepath.Join(guestproto.ShareDir, name)
	// EINVAL: it is no mount.
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	if err := unix.Mkdir(dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "look for", Path: dir, Err: err}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
