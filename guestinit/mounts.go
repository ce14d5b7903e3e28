package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// A preparedMount is one mount of the spec that exists but is attached nowhere yet.
//
//   - Copies of other mounts are prepared while the guest's own files are in sight,
//     for the sources.
//   - New file systems are prepared in the container's namespaces, but before its
//     root. The kernel lets a user namespace have a proc or sysfs only where one is
//     visible already.
//
// All are attached when the container's root is the root, so that no path in the
// container can lead out of it.
type preparedMount struct {
	spec specs.Mount
	plan mountPlan
	fd   int
	// file says that the mount is on a file, not on a directory.
	file bool
	// fillFirst says that a read-only file system has to be filled before it
	// becomes so: /dev, and a tmpfs.
	fillFirst bool
}

// planMounts prepares the spec's mounts, in order. It makes those that are copies
// of others, from what the calling thread sees. The caller closes them.
func (c *container) planMounts() (mounts []*preparedMount, err error) {
	for _, m := range c.spec.Mounts {
		p := &preparedMount{spec: m, fd: -1}
		mounts = append(mounts, p)
		if p.plan = planMount(m.Options); !p.isCopy() {
			continue
		}
		if err := c.cloneSource(p); err != nil {
			closeMounts(mounts)
			return nil, mountError(m, err)
		}
		if p.file {
			c.files = append(c.files, m.Source)
		}
	}
	return mounts, nil
}

// askAnew has the kernel ask the host for attributes of files, which it believes for
// a second otherwise. A caller may write a file that it binds between create and start:
// Podman does so with /etc/resolv.conf.
func askAnew(paths []string) {
	for _, path := range paths {
		var st unix.Statx_t
		_ = unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st) // the container would see the error
	}
}

// prepareMounts makes the mounts that are no copies, in the calling thread's
// namespaces, which are the container's.
func (c *container) prepareMounts(mounts []*preparedMount) error {
	for _, p := range mounts {
		var err error
		if !p.isCopy() {
			err = c.newFileSystem(p)
		}
		if err == nil {
			err = c.setAttributes(p)
		}
		if err != nil {
			return mountError(p.spec, err)
		}
	}
	return nil
}

func mountError(m specs.Mount, err error) error {
	return fmt.Errorf("mount %s:%s, type %q, options %q: %w", m.Source, m.Destination, m.Type, strings.Join(m.Options, ","), err)
}

func closeMounts(mounts []*preparedMount) {
	for _, m := range mounts {
		if m.fd >= 0 {
			_ = unix.Close(m.fd)
		}
	}
}

// isCopy says that the mount is a copy of another, and no file system of its own.
func (p *preparedMount) isCopy() bool {
	return p.plan.bind != 0 || p.plan.idmap != 0 || p.spec.Type == "bind"
}

// cloneSource makes p a copy of the mount tree at its source.
func (c *container) cloneSource(p *preparedMount) (err error) {
	if p.spec.Source == guestproto.JoinedShm {
		p.fd, err = c.joinedShm()
	} else {
		p.fd, err = openTree(p.spec.Source, (p.plan.bind|p.plan.idmap)&unix.MS_REC != 0)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(p.fd, &st); err != nil {
		return err
	}
	p.file = st.Mode&unix.S_IFMT != unix.S_IFDIR
	return nil
}

// openTree clones the mount at path.
func openTree(path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return -1, &os.PathError{Op: "bind", Path: path, Err: err}
	}
	return fd, nil
}

// newFileSystem makes p an instance of the file system of its type.
func (c *container) newFileSystem(p *preparedMount) error {
	fstype := p.spec.Type
	if fstype == "cgroup" { // what hosts with cgroup v1 ask for
		fstype = "cgroup2"
		p.plan.parameters = nil // names of v1 controllers
	}
	if dest := filepath.Join("/", p.spec.Destination); dest == "/dev" || fstype == "tmpfs" {
		p.fillFirst = p.plan.attrs.Attr_set&unix.MOUNT_ATTR_RDONLY != 0
		p.plan.attrs.Attr_set &^= unix.MOUNT_ATTR_RDONLY
	}
	fs, err := c.openFileSystem(fstype)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	source := p.spec.Source
	if source == "" {
		source = fstype
	}
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return fmt.Errorf("source %q: %w", source, contextError(fs, err))
	}
	for _, param := range c.ids.ownerParameters(fstype, p.plan.parameters) {
		if param.value == "" {
			err = unix.FsconfigSetFlag(fs, param.key)
		} else {
			err = unix.FsconfigSetString(fs, param.key, param.value)
		}
		if err != nil {
			return fmt.Errorf("option %q: %w", param, contextError(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return contextError(fs, err)
	}
	if p.fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(p.plan.attrs.Attr_set)); err != nil {
		return contextError(fs, err)
	}
	return nil
}

// openFileSystem begins a file system of the container's namespaces, which are
// the calling thread's, except that a thread cannot change its pid namespace;
// so the container init has begun the procs.
func (c *container) openFileSystem(fstype string) (int, error) {
	if fstype != "proc" {
		return unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	}
	head := c.init.script.head
	if c.procs == int(head.results) {
		return -1, errors.New("too many procs")
	}
	c.procs++
	return unix.PidfdGetfd(c.init.pidfd, int(head.result[c.procs-1]), 0)
}

// contextError adds what the file system has to say about an error.
func contextError(fs int, err error) error {
	buf := make([]byte, 512)
	if n, readErr := unix.Read(fs, buf); readErr == nil && n > 2 {
		return fmt.Errorf("%s: %w", strings.TrimSpace(string(buf[2:n])), err)
	}
	return err
}

// ownerParameters adds to the parameters of a new tmpfs the owner, and turns
// the ids among the parameters of tmpfs and devpts into the guest's: the mount
// is made by guestinit, but they are meant in the container's user namespace.
func (ids idMaps) ownerParameters(fstype string, parameters []mountParameter) []mountParameter {
	if !ids.present() || (fstype != "tmpfs" && fstype != "devpts") {
		return parameters
	}
	var mapped []mountParameter
	if fstype == "tmpfs" {
		mapped = append(mapped, mountParameter{"uid", strconv.Itoa(ids.uid(0))}, mountParameter{"gid", strconv.Itoa(ids.gid(0))})
	}
	for _, p := range parameters {
		if n, err := strconv.ParseUint(p.value, 10, 32); err == nil {
			switch p.key {
			case "uid":
				p.value = strconv.Itoa(ids.uid(uint32(n)))
			case "gid":
				p.value = strconv.Itoa(ids.gid(uint32(n)))
			}
		}
		mapped = append(mapped, p)
	}
	return mapped
}

// setAttributes applies the attributes that a new file system did not get at
// birth, the recursive ones, and an id mapping.
func (c *container) setAttributes(p *preparedMount) error {
	if p.isCopy() && p.plan.attrs != (unix.MountAttr{}) {
		if err := unix.MountSetattr(p.fd, "", unix.AT_EMPTY_PATH, &p.plan.attrs); err != nil {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	if p.plan.recursive != (unix.MountAttr{}) {
		if err := unix.MountSetattr(p.fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &p.plan.recursive); err != nil {
			return fmt.Errorf("set recursive attributes: %w", err)
		}
	}
	if p.plan.idmap == 0 && len(p.spec.UIDMappings)+len(p.spec.GIDMappings) == 0 {
		return nil
	}
	return c.mapIDs(p)
}

// attach puts the mount at its destination in the calling thread's root, which
// is the container's, and makes the mount point if there is none.
func (p *preparedMount) attach(ids idMaps) error {
	dest := filepath.Join("/", p.spec.Destination)
	links := unix.MOVE_MOUNT_T_SYMLINKS
	if !p.isCopy() && (p.spec.Type == "proc" || p.spec.Type == "sysfs") {
		links = 0 // as runc: no link of the image's may lead these elsewhere
		if st, err := os.Lstat(dest); err == nil && !st.IsDir() {
			return fmt.Errorf("filesystem %q must be mounted on ordinary directory", p.spec.Type)
		}
	}
	st, err := os.Stat(dest)
	switch {
	case err != nil:
		if err := makeMountPoint(dest, p.file, ids); err != nil {
			return err
		}
	case p.spec.Type == "tmpfs" && !p.isCopy():
		if err := p.resemble(dest, st); err != nil {
			return fmt.Errorf("have the tmpfs look like %s: %w", dest, err)
		}
	}
	if err := unix.MoveMount(p.fd, "", unix.AT_FDCWD, dest, unix.MOVE_MOUNT_F_EMPTY_PATH|links); err != nil {
		return fmt.Errorf("mount on %s: %w", dest, err)
	}
	for _, flags := range p.plan.propagation {
		if err := mount("", dest, "", flags, ""); err != nil {
			return err
		}
	}
	return nil
}

// resemble gives a new tmpfs the mode of the directory that it covers, as runc
// does, and with tmpcopyup its owner and content; what the options say stays.
func (p *preparedMount) resemble(dest string, st os.FileInfo) error {
	fd, err := unix.Openat(p.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	covered := st.Sys().(*syscall.Stat_t)
	if p.plan.copyUp {
		if err := copyUp(dest, fd); err != nil {
			return err
		}
		if !p.plan.has("uid") && !p.plan.has("gid") {
			if err := unix.Fchown(fd, int(covered.Uid), int(covered.Gid)); err != nil {
				return err
			}
		}
	}
	if p.plan.has("mode") {
		return nil
	}
	return unix.Fchmod(fd, covered.Mode&0o7777)
}

// makeMountPoint makes dest a directory or a file: there is nothing, and where a
// link leads to nothing, it is made there.
func makeMountPoint(dest string, file bool, ids idMaps) error {
	dest, err := securejoin.SecureJoin("/", dest)
	if err != nil {
		return err
	}
	dir := dest
	if file {
		dir = filepath.Dir(dest)
	}
	if err := makeDirs(dir, ids); err != nil || !file {
		return err
	}
	f, err := os.OpenFile(dest, os.O_CREATE|os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0o755)
	if err != nil {
		return err
	}
	defer f.Close()
	return ids.chownFile(f)
}

// makeDirs is os.MkdirAll; the new directories belong to the container's root.
func makeDirs(dir string, ids idMaps) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return &os.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
		}
		return nil
	}
	if err := makeDirs(filepath.Dir(dir), ids); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return ids.chown(dir, 0, 0)
}
