package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// forget makes the kernel forget every file that nobody uses. Its pages go first,
// as an inode with pages cannot be forgotten. The host asks for it when it may have
// many files open for the guest.
func (s *server) forget(req *guestproto.ForgetRequest) (any, error) {
	before, err := countInodes()
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
	r.After, err = countInodes()
	return r, err
}

// countInodes is how many inodes the kernel has in memory, of all file systems
// (Documentation/admin-guide/sysctl/fs.rst, inode-nr).
func countInodes() (int, error) {
	const file = "/proc/sys/fs/inode-nr"
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\t")
	n, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return 0, fmt.Errorf("%s: %q", file, text)
	}
	return n, nil
}
