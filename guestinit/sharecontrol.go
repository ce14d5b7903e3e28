package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// openShareControl opens the file of a name that the kernel has for the share in fusectl
// (Documentation/filesystems/fuse.rst), which is mounted nowhere for that. The caller
// closes the file. Debian's kernel has no file for a share: that is os.ErrNotExist.
func openShareControl(name string, flags int) (*os.File, error) {
	var share unix.Stat_t
	if err := unix.Stat(guestproto.ShareDir, &share); err != nil {
		return nil, &os.PathError{Op: "stat", Path: guestproto.ShareDir, Err: err}
	}
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fusectl: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("fusectl: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fusectl: %w", err)
	}
	defer unix.Close(mount)
	path := fmt.Sprintf("%d/%s", unix.Minor(share.Dev), name)
	fd, err := unix.Openat(mount, path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "fusectl: " + path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
