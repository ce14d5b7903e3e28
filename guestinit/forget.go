package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// forget makes the kernel forget every file that nobody uses. Its pages go first,
// as an inode with pages cannot be forgotten. The host asks for it when it may have
// many files open for the guest.
func (s *server) forget(req *guestproto.ForgetRequest) (any, error) {
	before, err := countFiles()
	if err != nil {
		return nil, err
	}
	r := &guestproto.ForgetReply{Before: before, After: before}
	if before <= req.Above {
		return r, nil
	}
	if err := writeFile("/proc/sys/vm/drop_caches", "3"); err != nil {
		return nil, err
	}
	r.After, err = countFiles()
	return r, err
}

// countFiles is how many descriptors the host's virtiofsd has for this kernel: for inodes
// in memory and open files (kernels/patches/fuse-server-held.patch). A kernel without the
// patch counts only the inodes of all file systems (Documentation/admin-guide/sysctl/fs.rst,
// inode-nr).
func countFiles() (int, error) {
	held, err := openShareControl("held", unix.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		held, err = os.Open("/proc/sys/fs/inode-nr")
	}
	if err != nil {
		return 0, err
	}
	defer held.Close()
	var n int
	if _, err := fmt.Fscan(held, &n); err != nil {
		return 0, fmt.Errorf("%s: %w", held.Name(), err)
	}
	return n, nil
}
