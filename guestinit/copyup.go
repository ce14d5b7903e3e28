package main

import (
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// copyUp copies what is in the directory dir into the one that fd is open on.
func copyUp(dir string, fd int) error {
	src, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer src.Close()
	return copyEntries(int(src.Fd()), fd)
}

func copyOwner(fd int, st *unix.Stat_t) error {
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Fchmod(fd, st.Mode&0o7777)
}

// copyEntries copies what is in the directory src into dst. Directories are
// passed by descriptor, as dst cannot be reached by a path yet.
func copyEntries(src, dst int) error {
	dup, err := unix.FcntlInt(uintptr(src), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	list := os.NewFile(uintptr(dup), "directory")
	names, err := list.Readdirnames(-1)
	list.Close()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(src, dst, name); err != nil {
			return &os.PathError{Op: "copy", Path: name, Err: err}
		}
	}
	return nil
}

func copyEntry(src, dst int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(src, name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), dst, name); err != nil {
			return err
		}
		return unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFDIR, unix.S_IFREG:
		return copyContent(src, dst, name, &st)
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		return unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	}
}

func copyContent(src, dst int, name string, st *unix.Stat_t) error {
	from, err := openAt(src, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer from.Close()
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL
	if isDir {
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	}
	to, err := openAt(dst, name, flags)
	if err != nil {
		return err
	}
	defer to.Close()
	if isDir {
		err = copyEntries(int(from.Fd()), int(to.Fd()))
	} else {
		_, err = io.Copy(to, from)
	}
	if err != nil {
		return err
	}
	return copyOwner(int(to.Fd()), st)
}

func openAt(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(strconv.Itoa(dir), name)), nil
}
