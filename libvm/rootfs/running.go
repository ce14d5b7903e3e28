package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"

	"golang.org/x/sys/unix"
)

// A RunningShare is one that virtiofsd serves already. It is the root of virtiofsd's
// mount namespace, and can be changed there only.
type RunningShare struct {
	// Server is a pidfd of virtiofsd. The caller closes it.
	Server *os.File
	// Identity is that of the share's root, by which virtiofsd's root is known to be it.
	Identity Identity
}

// Identity tells a directory from all others.
type Identity struct{ Device, Inode uint64 }

// IdentityOf returns the identity of a directory.
func IdentityOf(dir string) (Identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return Identity{}, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return Identity{st.Dev, st.Ino}, nil
}

// CopyTree copies the mount at dir with all mounts below. The copy is mounted nowhere:
// its descriptor can be handed to another process, for RunningShare.Attach there.
// The caller closes it.
func CopyTree(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// Attach mounts a tree in the share, at DIRECTORY/NAME: what is missing is made. If
// something is mounted there already, that is an error which matches unix.EXDEV.
//
// The guest may have made whatever it likes there. So nothing is followed, and what is
// mounted on is a directory of the share's own file system. The worst that a guest can do
// is to have Attach fail.
func (s RunningShare) Attach(name string, tree *os.File) error {
	return s.inside(func(root int) error {
		parent, err := openBeneath(root, path.Dir(name), true)
		if err != nil {
			return err
		}
		defer unix.Close(parent)
		dir, err := openBeneath(parent, path.Base(name), true)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return unix.MoveMount(int(tree.Fd()), "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
}

// Detach takes away what Attach has mounted. The directory stays. That nothing is mounted
// there is no error.
func (s RunningShare) Detach(name string) error {
	return s.inside(func(root int) error {
		parent, err := openBeneath(root, path.Dir(name), false)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		defer unix.Close(parent)
		if err := unix.Fchdir(parent); err != nil {
			return err
		}
		err = unix.Unmount(path.Base(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

// Remove removes the directory that Attach has made, unless it has gone.
func (s RunningShare) Remove(name string) error {
	return s.inside(func(root int) error {
		parent, err := openBeneath(root, path.Dir(name), false)
		if err == nil {
			err = unix.Unlinkat(parent, path.Base(name), unix.AT_REMOVEDIR)
			_ = unix.Close(parent) // nothing was written through it
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

// inside calls f on a thread in virtiofsd's mount namespace, with the share's root.
func (s RunningShare) inside(f func(root int) error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: a thread with another root is not given back
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Setns(int(s.Server.Fd()), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("join virtiofsd's mount namespace: %w", err)
			}
			root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(root)
			var st unix.Stat_t
			if err := unix.Fstat(root, &st); err != nil {
				return err
			}
			if (Identity{st.Dev, st.Ino}) != s.Identity {
				return errors.New("the root of virtiofsd is not the share")
			}
			return f(root)
		}()
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("the running share: %w", err)
	}
	return nil
}

// openBeneath opens an entry of a directory that is a directory, on the same mount, and
// makes it if that is asked for.
func openBeneath(dir int, name string, missing bool) (int, error) {
	const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := openat2(dir, name, flags, resolve)
	if !missing || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := unix.Mkdirat(dir, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return openat2(dir, name, flags, resolve)
}
