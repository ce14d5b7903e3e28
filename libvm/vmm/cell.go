package vmm

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
)

// A cell is what QEMU runs in: a root file system with what it reads while it
// starts and nothing else of the host's, and a user who has nothing else. A guest
// that takes over QEMU finds no file of the host's there, no capability, and with
// QEMU's own seccomp filter no way to execute anything.
type cell struct {
	dir       string   // where its root is mounted, for itself only
	program   string   // QEMU
	images    []string // files that QEMU reads
	memoryMiB int
	kvm       bool
	who       *identity // nil to stay whoever starts it
	own       []string  // what in its root becomes its user's
	log       *slog.Logger
}

// enter gives the calling thread, which must be locked to its goroutine for good,
// the cell and no more privileges, and says in attr what the process that it forks
// needs for that. It returns the VM's memory, which is a file in the root,
// memoryPath to QEMU: like anonymous memory it goes when the last process lets go
// of it, and unlike that it can be filled and read from outside QEMU.
func (c *cell) enter(attr *syscall.SysProcAttr) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, fault.Wrap("unshare", err)
	}
	if err := rootfs.Detach(); err != nil {
		return nil, fault.Wrap("mount namespace", err)
	}
	options := fmt.Sprintf("mode=0755,size=%dm", c.memoryMiB+1)
	if err := unix.Mount("tmpfs", c.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, options); err != nil {
		return nil, fault.Wrap("mount QEMU's root", err)
	}
	places := programPlaces(c.program)
	if err := c.furnish(places); err != nil {
		return nil, err
	}
	c.own = append(c.own, memoryPath)
	memory, err := os.OpenFile(filepath.Join(c.dir, memoryPath), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fault.Wrap("make the VM's memory", err)
	}
	err = fault.Wrap("size the VM's memory", memory.Truncate(int64(c.memoryMiB)<<20))
	if err == nil {
		err = enterRoot(c.dir)
	}
	if err == nil {
		err = c.changeUser(attr, places)
	}
	if err == nil {
		err = dropPrivileges()
	}
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	return memory, nil
}

// Paths in QEMU's root.
const (
	memoryPath = "/memory"
	emptyPath  = "/empty" // where its next root is mounted
	kvmPath    = "/dev/kvm"
)

// furnish fills QEMU's root.
func (c *cell) furnish(places []string) error {
	paths := slices.Concat([]string{"/usr", "/lib", "/lib64", "/etc/ld.so.cache"}, places, c.images)
	for _, path := range paths {
		if err := mirror(c.dir, path, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
			return err
		}
	}
	for _, device := range []string{"/dev/null", "/dev/urandom"} {
		if err := mirror(c.dir, device, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	if c.kvm {
		if err := c.provideKVM(); err != nil {
			return err
		}
	}
	return fault.Wrap("QEMU's root", os.Mkdir(filepath.Join(c.dir, emptyPath), 0o755))
}

// provideKVM makes a node of QEMU's own, or shows the host's where none can be
// made, as in a user namespace. QEMU then has its group, or stays whoever starts
// it: what lets the user in may be a supplementary group.
func (c *cell) provideKVM() error {
	var st unix.Stat_t
	if err := unix.Stat(kvmPath, &st); err != nil {
		return fault.Wrap("look at "+kvmPath, err)
	}
	if c.who != nil {
		err := unix.Mknod(filepath.Join(c.dir, kvmPath), unix.S_IFCHR|0o600, int(st.Rdev))
		if err == nil {
			c.own = append(c.own, kvmPath)
			return nil
		}
		c.log.Debug("no node of QEMU's own", "device", kvmPath, "error", err)
		const others, group = 0o006, 0o060
		switch {
		case st.Mode&others == others:
		case st.Mode&group == group && st.Gid != overflowID:
			c.who.gid = int(st.Gid)
		default:
			c.stay(kvmPath)
		}
	}
	return mirror(c.dir, kvmPath, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
}

// overflowID is what the kernel shows in place of an id that has no mapping, unless
// an administrator wants another.
const overflowID = 65534

// stay has QEMU be whoever starts it.
func (c *cell) stay(file string) {
	c.log.Debug("QEMU gets no user of its own, who could not use a file", "file", file)
	c.who = nil
}

// changeUser has the process be the cell's own user, if that one may read all that
// QEMU reads: somebody may have kernels or a QEMU that are root's alone.
func (c *cell) changeUser(attr *syscall.SysProcAttr, places []string) error {
	if c.who == nil {
		return nil
	}
	closed := ""
	look := func(mode uint32, paths ...string) {
		for _, path := range paths {
			err := unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS)
			if err != nil && !errors.Is(err, unix.ENOENT) { // what is missing QEMU does not need, or says so itself
				closed = cmp.Or(closed, path)
			}
		}
	}
	err := c.who.as(func() {
		look(unix.R_OK, c.images...)
		look(unix.R_OK|unix.X_OK, places...)
		look(unix.R_OK|unix.X_OK, c.program)
	})
	if err != nil {
		return fault.Wrap("look at QEMU's files as its user", err)
	}
	if closed != "" {
		c.stay(closed)
		return nil
	}
	for _, path := range c.own {
		if err := os.Chown(path, c.who.uid, c.who.gid); err != nil {
			return fault.Wrap("give QEMU "+path, err)
		}
	}
	attr.Credential = &syscall.Credential{Uid: uint32(c.who.uid), Gid: uint32(c.who.gid)}
	return nil
}

// emptyRoot leaves QEMU, which has read everything, and the calling thread, which
// it was forked from, a root without anything in it.
func emptyRoot() error {
	if err := unix.Mount("tmpfs", emptyPath, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k"); err != nil {
		return fault.Wrap("mount QEMU's empty root", err)
	}
	return enterRoot(emptyPath) // takes along all whose root was the thread's
}

func enterRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return fault.Wrap("enter QEMU's root", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil { // as in Enter
		return fault.Wrap("pivot_root to QEMU's root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fault.Wrap("unmount the old root", err)
	}
	return fault.Wrap("chdir", unix.Chdir("/"))
}

// programPlaces are the directories that a program may need beside the system's:
// its own and, if it is in the bin of a prefix, those beside that. Libraries of a
// program in a store of packages are all over the store.
func programPlaces(program string) (places []string) {
	paths := []string{program}
	if real, err := filepath.EvalSymlinks(program); err == nil && real != program {
		paths = append(paths, real)
	}
	for _, path := range paths {
		for _, store := range []string{"/nix/store", "/gnu/store"} {
			if strings.HasPrefix(path, store+"/") {
				places = append(places, store)
			}
		}
		dir := filepath.Dir(path)
		switch {
		case dir == "/":
			places = append(places, path)
		case filepath.Base(dir) == "bin":
			for _, name := range []string{"bin", "lib", "lib64", "libexec", "share"} {
				places = append(places, filepath.Join(filepath.Dir(dir), name))
			}
		default:
			places = append(places, dir)
		}
	}
	return places
}

// mirror shows path below root at the same place, with mount attributes added.
// A symbolic link is made again; what the host does not have is left out, and
// what is there already stays.
func mirror(root, path string, attributes uint64) error {
	target := filepath.Join(root, path)
	if _, err := os.Lstat(target); err == nil {
		return nil
	}
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap("look at "+path, err)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return fault.Wrap("QEMU's root", err)
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		link, err := os.Readlink(path)
		if err != nil {
			return fault.Wrap("read link "+path, err)
		}
		return fault.Wrap("QEMU's root", os.Symlink(link, target))
	}
	if err := rootfs.MakeMountPoint(target, !st.IsDir()); err != nil {
		return fault.Wrap("QEMU's root", err)
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fault.Wrap(fmt.Sprintf("bind %s into QEMU's root", path), err)
	}
	attr := unix.MountAttr{Attr_set: attributes}
	return fault.Wrap("protect "+path, unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr))
}
