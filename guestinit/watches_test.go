package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseWatch(t *testing.T) {
	for _, c := range []struct {
		name, line string
		node       uint64
		device     uint32
		mask       uint32 // 0: not one of FUSE's
	}{
		{
			"a directory of the share's", "inotify wd:1 ino:5 sdev:23 mask:3c0 ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:010000000200000000000000\n",
			1<<32 | 2, 0x23, unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CREATE | unix.IN_DELETE,
		},
		{"only reading", "inotify wd:1 ino:5 sdev:23 mask:21 ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:000000000200000000000000\n", 0, 0, 0},
		{"ext4", "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d\n", 0, 0, 0},
		{"a handle that is cut off", "inotify wd:1 ino:5 sdev:23 mask:3c0 ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:0100\n", 0, 0, 0},
		{"no hexadecimal", "inotify wd:1 ino:5 sdev:23 mask:3c0 ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:zz0000000200000000000000\n", 0, 0, 0},
		{"no watch", "pos:\t0\n", 0, 0, 0},
	} {
		file, mask, ok := parseWatch(c.line)
		if ok != (c.mask != 0) || ok && (mask != c.mask || file.node() != c.node || file.device != c.device) {
			t.Errorf("%s: %+v (node %#x), %#x, %v", c.name, file, file.node(), mask, ok)
		}
	}
}
