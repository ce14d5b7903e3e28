package libvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// confine gives the calling thread, which must be locked to its goroutine for
// good, a root file system with what QEMU reads and nothing else of the host's:
// its program, libraries and firmware, the guest's images, three devices. A
// guest that takes over QEMU finds no file of the host's there, no capability,
// and with QEMU's own seccomp filter no way to execute anything.
//
// The new root is a tmpfs mounted at dir, which stays as it is for all others.
// The VM's memory is a file in it, memoryPath to QEMU, which confine returns
// open: like anonymous memory it goes when the last process lets go of it, and
// unlike that it can be filled and read from outside QEMU.
func confine(dir, program string, memoryMiB int, images ...string) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, partError("unshare", err)
	}
	if err := detachMounts(); err != nil {
		return nil, partError("mount namespace", err)
	}
	options := fmt.Sprintf("mode=0755,size=%dm", memoryMiB+1)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, options); err != nil {
		return nil, partError("mount QEMU's root", err)
	}
	if err := furnish(dir, program, images...); err != nil {
		return nil, err
	}
	memory, err := os.OpenFile(filepath.Join(dir, memoryPath), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, partError("make the VM's memory", err)
	}
	err = partErrorOrNil("size the VM's memory", memory.Truncate(int64(memoryMiB)<<20))
	if err == nil {
		err = enterRoot(dir)
	}
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	return memory, nil
}

// memoryPath is the VM's memory in QEMU's root.
const memoryPath = "/memory"

// furnish fills QEMU's root.
func furnish(dir, program string, images ...string) error {
	paths := append([]string{"/usr", "/lib", "/lib64", "/etc/ld.so.cache", topDirectory(program)}, images...)
	for _, path := range paths {
		if err := mirror(dir, path, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
			return err
		}
	}
	for _, device := range []string{"/dev/null", "/dev/urandom", "/dev/kvm"} {
		if err := mirror(dir, device, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	return nil
}

func enterRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return partError("enter QEMU's root", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil { // as in enterRootfs
		return partError("pivot_root to QEMU's root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return partError("unmount the old root", err)
	}
	return partErrorOrNil("chdir", unix.Chdir("/"))
}

// topDirectory is the first element of an absolute path: a program in /opt or
// /nix has its libraries there too.
func topDirectory(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return "/" + first
}

// mirror shows path below root at the same place, with mount attributes added.
// A symbolic link is made again; what the host does not have is left out, and
// what is there already stays.
func mirror(root, path string, attributes uint64) error {
	target := filepath.Join(root, path)
	if _, err := os.Lstat(target); err == nil {
		return nil
	}
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return partError("look at "+path, err)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return partError("QEMU's root", err)
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		link, err := os.Readlink(path)
		if err != nil {
			return partError("read link "+path, err)
		}
		return partErrorOrNil("QEMU's root", os.Symlink(link, target))
	}
	if err := makeMountPoint(target, !st.IsDir()); err != nil {
		return partError("QEMU's root", err)
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return partError(fmt.Sprintf("bind %s into QEMU's root", path), err)
	}
	attr := unix.MountAttr{Attr_set: attributes}
	return partErrorOrNil("protect "+path, unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr))
}

func partErrorOrNil(what string, err error) error {
	if err == nil {
		return nil
	}
	return partError(what, err)
}
