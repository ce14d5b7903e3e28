// Package rootfs works on paths of a container's root file system from the
// host's side.
//
// Whoever controls the container, or shares a volume with it, changes these
// paths while the host looks at them. Therefore no path is used twice, and none
// as a string: openat2(2) walks it inside the root (RESOLVE_IN_ROOT), follows no
// magic link of procfs (RESOLVE_NO_MAGICLINKS), and what it finds is used by its
// descriptor. The worst that a change can do is to have another place inside the
// root taken, or the call fail.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// Root is a container's root directory.
type Root struct{ dir *os.File }

// Open opens the root directory at path, which is the host's to choose: symbolic
// links on the way are followed. The caller closes the root.
func Open(path string) (*Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Root{os.NewFile(uintptr(fd), path)}, nil
}

// Close closes the root. What it has opened stays open.
func (r *Root) Close() error { return r.dir.Close() }

// ErrNotRegular is matched by the error for a file that only a container's own
// kernel should open: a FIFO, a device, a socket, a directory.
var ErrNotRegular = errors.New("not a regular file")

// ErrTooLarge is matched by the error for a file beyond the limit of ReadFile.
var ErrTooLarge = errors.New("file too large")

// ReadFile reads a regular file of at most limit bytes. It does not wait for the
// other end of a FIFO, and does not read a byte of what is refused.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := r.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", name, ErrNotRegular)
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d", name, ErrTooLarge, st.Size(), limit)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1)) // it may be growing
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s: %w: more than %d bytes", name, ErrTooLarge, limit)
	}
	return text, err
}

// MountPoint opens a directory or a file (of whatever type) to mount something on
// it (O_PATH). It makes what is missing, directories on the way included, as runc
// does. If a symbolic link leads to nothing, it makes the link's target. The caller
// closes the file.
func (r *Root) MountPoint(name string, file bool) (*os.File, error) {
	target, err := r.open(name, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		target, err = r.create(name, file)
	}
	if err != nil {
		return nil, err
	}
	st, err := target.Stat()
	if err == nil && st.IsDir() == file {
		// The words that runc has for it, and that docker adds a hint to.
		err = fmt.Errorf("%w: a directory can be mounted on a directory only, a file on a file", unix.ENOTDIR)
	}
	if err != nil {
		return nil, errors.Join(err, target.Close())
	}
	return target, nil
}

// PlainDirectory is MountPoint for a directory whose last name may not be a
// symbolic link.
func (r *Root) PlainDirectory(name string) (*os.File, error) {
	dir, err := r.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		dir, err = r.create(name, false)
	}
	if err != nil {
		return nil, err
	}
	st, err := dir.Stat()
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("filesystem %q must be mounted on ordinary directory", path.Base(name)) // runc's words
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// mostTries bounds how often a walk begins anew: the kernel gives up (EAGAIN)
// where a directory was renamed while ".." was being followed.
const mostTries = 64

func (r *Root) open(name string, flags int) (*os.File, error) {
	fd, err := openat2(int(r.dir.Fd()), name, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openat2(dir int, name string, flags int, resolve uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	for range mostTries {
		fd, err = unix.Openat2(dir, name, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// create makes an empty directory or file at name, and the directories on the
// way to it.
func (r *Root) create(name string, file bool) (_ *os.File, err error) {
	// The name without links. It is a wish only: each part is opened, or made,
	// without following whatever has become of it since.
	wanted, err := securejoin.SecureJoinVFS("/", name, vfs{r})
	if err != nil {
		return nil, err
	}
	dir, err := unix.Dup(int(r.dir.Fd()))
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(dir)
	defer func() { _ = unix.Close(dir) }() // a descriptor that nothing was written through
	parts := strings.Split(strings.Trim(wanted, "/"), "/")
	for i, part := range parts {
		last := i == len(parts)-1
		next, err := openOrMake(dir, part, last && file)
		if err != nil {
			return nil, &os.PathError{Op: "make mount point", Path: path.Join("/", path.Join(parts[:i+1]...)), Err: err}
		}
		if last {
			return os.NewFile(uintptr(next), name), nil
		}
		_ = unix.Close(dir)
		dir = next
	}
	return nil, &os.PathError{Op: "make mount point", Path: name, Err: unix.EINVAL} // Split gives one part at least
}

// openOrMake opens the entry of a directory, without following it, and makes it
// if there is none.
func openOrMake(dir int, name string, file bool) (int, error) {
	const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	flags := unix.O_PATH | unix.O_NOFOLLOW
	if !file {
		flags |= unix.O_DIRECTORY
	}
	fd, err := openat2(dir, name, flags, resolve)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if file {
		var made int
		if made, err = unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0o644); err == nil {
			err = unix.Close(made)
		}
	} else {
		err = unix.Mkdirat(dir, name, 0o755)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return openat2(dir, name, flags, resolve)
}

// vfs is how securejoin looks at a root.
type vfs struct{ root *Root }

func (v vfs) Lstat(name string) (os.FileInfo, error) {
	f, err := v.root.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

func (v vfs) Readlink(name string) (string, error) {
	f, err := v.root.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}
