package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// shareTimeout bounds the wait for the share's device, which is plugged in
// shortly before create.
const shareTimeout = 10 * time.Second

// mountShare mounts the VM's share, once its device is there.
func mountShare() error {
	if err := os.MkdirAll(guestproto.ShareDir, 0o755); err != nil {
		return err
	}
	return awaitUevent(shareTimeout, func() error {
		return mount(guestproto.ShareTag, guestproto.ShareDir, "virtiofs", 0, "")
	})
}

// rootfsDir is where the container's rootfs is for the moment between its
// mounting and the pivot.
const rootfsDir = "/run/boxlite/rootfs"

// propagations are the values of linux.rootfsPropagation.
var propagations = map[string]uintptr{
	"": 0, "private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// enterRootfs makes the mount tree behind rootfs the root of the calling
// thread's mount namespace, and nothing of the guest's files is left in it. The
// kernel moves the waiting container init along, as its root was the same.
func enterRootfs(rootfs int) error {
	if err := os.MkdirAll(rootfsDir, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(rootfs, "", unix.AT_FDCWD, rootfsDir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount on %s: %w", rootfsDir, err)
	}
	if err := unix.Chdir(rootfsDir); err != nil {
		return fmt.Errorf("chdir to %s: %w", rootfsDir, err)
	}
	// With both arguments the same the old root ends up on top of the new one,
	// where it can be unmounted, and the rootfs needs no directory for it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the guest's root: %w", err)
	}
	return unix.Chdir("/")
}

// finishRootfs does what has to come after all mounts.
func (c *container) finishRootfs() error {
	linux := c.spec.Linux
	for _, path := range linux.ReadonlyPaths {
		if err := readonlyPath(path); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	for _, path := range linux.MaskedPaths {
		if err := maskPath(path); err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	flags, ok := propagations[linux.RootfsPropagation]
	if !ok {
		return fmt.Errorf("unknown rootfsPropagation %q", linux.RootfsPropagation)
	}
	if flags != 0 {
		if err := mount("", "/", "", flags, ""); err != nil {
			return err
		}
	}
	if c.spec.Root.Readonly {
		return setReadonly("/")
	}
	return nil
}

// setReadonly makes the mount at path read-only, and none below.
func setReadonly(path string) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

// readonlyPath binds path on itself, read-only. What is not there needs no
// protection.
func readonlyPath(path string) error {
	if !filepath.IsAbs(path) {
		return errors.New("path is not absolute")
	}
	fd, err := openTree(path, true)
	if errors.Is(err, os.ErrNotExist) && !danglingLink(path) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

// maskPath hides a file behind /dev/null and a directory behind an empty
// read-only tmpfs.
func maskPath(path string) error {
	if !filepath.IsAbs(path) {
		return errors.New("path is not absolute")
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && !danglingLink(path):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return mount("tmpfs", path, "tmpfs", unix.MS_RDONLY, "")
	}
	return mount("/dev/null", path, "", unix.MS_BIND, "")
}

// danglingLink says that path is a symbolic link to nothing, which cannot be
// protected and which the container could fill.
func danglingLink(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode()&os.ModeSymlink != 0
}
