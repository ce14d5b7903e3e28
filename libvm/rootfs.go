package libvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostMount is one of the container's mounts as the host side shows it, below
// the monitor's root.
type hostMount struct {
	target string
	file   bool
	fd     int // a detached mount (open_tree(2)), closed by attach
}

// detachedMounts opens the sources of binds as mounts that can be attached
// after the monitor has left the host's file systems. The rootfs itself, the
// first of binds, is not among them.
func detachedMounts(share string, binds []Bind, mounts []specs.Mount) ([]hostMount, error) {
	dest := map[string]string{}
	for _, m := range mounts {
		dest[m.Source] = m.Destination
	}
	var out []hostMount
	for _, b := range binds[1:] {
		path := filepath.Join(share, b.Name)
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return out, fmt.Errorf("open_tree %s: %w", b.Source, err)
		}
		out = append(out, hostMount{target: dest[guestSharePath(b.Name)], file: b.File, fd: fd})
	}
	return out, nil
}

func closeMounts(mounts []hostMount) {
	for _, m := range mounts {
		_ = unix.Close(m.fd)
	}
}

// enterRootfs makes rootfs the root of the monitor's mount namespace, as a
// container's process under runc has it: podman cp, podman top and others enter
// that namespace and work on "/". The container's binds are attached at their
// places, and a proc of the monitor's own pid namespace at /proc. The old root
// is let go: from here on the monitor reaches the host only through what it
// holds open.
func enterRootfs(rootfs string, mounts []hostMount) error {
	proc, err := newProc()
	if err != nil {
		return err
	}
	defer unix.Close(proc)
	if err := unix.Chdir(rootfs); err != nil {
		return fmt.Errorf("chdir %s: %w", rootfs, err)
	}
	// pivot_root(".", ".") stacks the old root over the new one; the umount
	// takes it off again (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root %s: %w", rootfs, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	errs := []error{mountProc(proc)}
	for _, m := range mounts {
		errs = append(errs, attach(m))
	}
	return errors.Join(errs...)
}

// newProc makes a proc of the monitor's pid namespace, mounted nowhere yet. In a
// user namespace the kernel allows that only as long as another proc can be
// seen, thus not after the old root has gone, and not of a pid namespace that is
// another's: that has its proc at /proc already.
func newProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen proc: %w", err)
	}
	defer unix.Close(fs)
	err = unix.FsconfigCreate(fs)
	if errors.Is(err, unix.EPERM) { // podman's --pid=host without root
		proc, err := unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return -1, fmt.Errorf("open_tree /proc: %w", err)
		}
		return proc, nil
	}
	if err != nil {
		return -1, fmt.Errorf("make a proc: %w", err)
	}
	proc, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsmount proc: %w", err)
	}
	return proc, nil
}

// mountProc puts a proc in place.
func mountProc(proc int) error {
	if err := makeMountPoint("/proc", false); err != nil {
		return err
	}
	if err := unix.MoveMount(proc, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// attach puts a detached mount in place, making the mount point if there is
// none, as runc does. All paths are the container's, and so is the root.
func attach(m hostMount) error {
	defer unix.Close(m.fd)
	st, err := os.Stat(m.target)
	switch {
	case err == nil && st.IsDir() == m.file:
		// The words that runc has for it, and that docker adds a hint to.
		return fmt.Errorf("mount %s: %w: a directory can be mounted on a directory only, a file on a file", m.target, unix.ENOTDIR)
	case err != nil:
		path, err := securejoin.SecureJoin("/", m.target) // where a link leads to nothing, that is made
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := makeMountPoint(path, m.file); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(m.fd, "", unix.AT_FDCWD, m.target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}
