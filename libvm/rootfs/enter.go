package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// Mount is one of the container's mounts as the host's side shows it to processes
// that enter the monitor's mount namespace.
type Mount struct {
	target string
	file   bool
	tree   *os.File // see CopyTree; closed by attach. Nil for files that the guest has
}

// DetachedMounts opens the sources of binds as mounts that can be attached
// after the monitor has left the host's file systems. The rootfs itself, the
// first of the plan's binds, is not among them.
func DetachedMounts(share string, p *plan.Plan) ([]Mount, error) {
	binds := map[string]plan.Bind{}
	for _, b := range p.Binds[1:] {
		binds[p.GuestPath(b)] = b
	}
	var out []Mount
	for _, m := range p.Guest.Mounts {
		b, isBind := binds[m.Source]
		switch {
		case isBind:
			tree, err := CopyTree(filepath.Join(share, b.Name))
			if err != nil {
				return out, fmt.Errorf("%s: %w", b.Source, err)
			}
			out = append(out, Mount{target: m.Destination, file: b.File, tree: tree})
		case m.Type == "tmpfs", m.Type == "ext4": // a scratch disk
			out = append(out, Mount{target: m.Destination})
		}
	}
	return out, nil
}

func CloseMounts(mounts []Mount) {
	for _, m := range mounts {
		_ = m.tree.Close() // nothing was written
	}
}

// Enter makes the directory at path the root of the monitor's mount namespace, as a
// container's process under runc has it: podman cp, podman top and others enter
// that namespace and work on "/". The container's mounts are attached at their
// places, and a proc of the monitor's own pid namespace at /proc. The old root
// is let go: from here on the monitor reaches the host only through the files
// that it holds open, and none of them is a directory.
func Enter(path string, mounts []Mount) error {
	proc, err := NewProc()
	if err != nil {
		return err
	}
	defer unix.Close(proc)
	if err := unix.Chdir(path); err != nil {
		return fmt.Errorf("chdir %s: %w", path, err)
	}
	// pivot_root(".", ".") stacks the old root over the new one; the umount
	// takes it off again (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root %s: %w", path, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	root, err := Open("/")
	if err != nil {
		return err
	}
	return errors.Join(mountProc(root, proc), attachAll(root, mounts), root.Close())
}

// attachAll puts the container's mounts in place. A tmpfs is the guest's: what somebody
// copies to its path would be lost, so the directory that it covers is read-only here.
// So is a scratch disk's. Where there is no directory, none is made, as a tmpfs takes its
// mode from it: what is mounted below then shows in the guest alone.
func attachAll(root *Root, mounts []Mount) error {
	var errs []error
	var covered []*os.File
	var missing []string
	for _, m := range mounts {
		switch {
		case slices.ContainsFunc(missing, func(dir string) bool { return isBelow(m.target, dir) }):
			CloseMounts([]Mount{m})
		case m.tree != nil:
			errs = append(errs, attach(root, m))
		default:
			dir, err := cover(root, m.target)
			if errors.Is(err, unix.ENOENT) {
				missing = append(missing, m.target)
				continue
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("mount %s: %w", m.target, err))
				continue
			}
			covered = append(covered, dir)
		}
	}
	for _, dir := range covered {
		errs = append(errs, makeReadOnly(dir), dir.Close())
	}
	return errors.Join(errs...)
}

// isBelow compares names of a container's.
func isBelow(name, dir string) bool {
	return strings.HasPrefix(filepath.Clean("/"+name)+"/", filepath.Clean("/"+dir)+"/")
}

// cover mounts a directory of the container's on itself, and returns the mount.
func cover(root *Root, name string) (*os.File, error) {
	dir, err := root.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: name, Err: err}
	}
	tree := os.NewFile(uintptr(fd), name)
	if err := moveMount(fd, dir, name); err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	return tree, nil
}

func makeReadOnly(mount *os.File) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: mount.Name(), Err: err}
	}
	return nil
}

// procAttributes are those of the proc at the monitor's /proc. Nobody can follow a
// link of it (MOUNT_ATTR_NOSYMFOLLOW, from Linux 5.14): its magic links lead to the
// roots and descriptors of the monitor, of QEMU and virtiofsd, and of whoever else
// is in the pid namespace. Who enters the monitor's mount namespace to walk a path
// of the container's, as podman cp does, would be led there by a link of the
// container's to /proc/1/fd/9.
const procAttributes = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW

// NewProc makes a proc of the monitor's pid namespace, mounted nowhere yet. In a
// user namespace the kernel allows that only as long as another proc can be
// seen, thus not after the old root has gone, and not of a pid namespace that is
// another's: that has its proc at /proc already.
func NewProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen proc: %w", err)
	}
	defer unix.Close(fs)
	err = unix.FsconfigCreate(fs)
	if errors.Is(err, unix.EPERM) { // podman's --pid=host without root
		return copyProc()
	}
	if err != nil {
		return -1, fmt.Errorf("make a proc: %w", err)
	}
	proc, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, procAttributes)
	if err != nil {
		return -1, fmt.Errorf("fsmount proc: %w", err)
	}
	return proc, nil
}

func copyProc() (int, error) {
	proc, err := unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("open_tree /proc: %w", err)
	}
	attr := unix.MountAttr{Attr_set: procAttributes}
	if err := unix.MountSetattr(proc, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return -1, errors.Join(fmt.Errorf("mount_setattr /proc: %w", err), unix.Close(proc))
	}
	return proc, nil
}

// mountProc puts a proc in place.
func mountProc(root *Root, proc int) error {
	dir, err := root.PlainDirectory("/proc")
	if err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	defer dir.Close()
	return moveMount(proc, dir, "/proc")
}

// attach puts a detached mount in place, making the mount point if there is
// none, as runc does. All paths are the container's, and so is the root.
func attach(root *Root, m Mount) error {
	defer m.tree.Close()
	target, err := root.MountPoint(m.target, m.file)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	defer target.Close()
	return moveMount(int(m.tree.Fd()), target, m.target)
}

// moveMount mounts a detached mount on what target has open, whatever its name
// is by now.
func moveMount(mount int, target *os.File, name string) error {
	if err := unix.MoveMount(mount, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", name, err)
	}
	return nil
}
