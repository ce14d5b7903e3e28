package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// showSubmounts makes mounts of the guest's out of mounts of the host's below dir, which
// is in the share. Without that, virtio-fs makes such a mount when somebody first goes
// there, and with the attributes of the mount above it. What has gone, or has become
// something else meanwhile, is left out: whoever shares the files may change them.
func showSubmounts(dir string, below []string) {
	if len(below) == 0 {
		return
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		logf("%v", &os.PathError{Op: "open", Path: dir, Err: err})
		return
	}
	defer unix.Close(at)
	for _, path := range below {
		if err := showSubmount(at, path); err != nil {
			logf("mount %s below %s: %v", path, dir, err)
		}
	}
}

// showSubmount follows no link, and does not leave the directory.
func showSubmount(dir int, path string) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(dir, path, &how) // a directory: to open it is enough
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	how.Flags = unix.O_PATH | unix.O_CLOEXEC
	if fd, err = unix.Openat2(dir, path, &how); err != nil {
		return err
	}
	defer unix.Close(fd)
	file, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	defer unix.Close(file)
	return unix.MoveMount(file, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
