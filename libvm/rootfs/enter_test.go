package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// An image whose /proc is a link gets no proc where the link leads, nor a container.
func TestProcIsALink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts, which needs root")
	}
	root := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(root, "volume"), 0o755), os.Symlink("/volume", filepath.Join(root, "proc"))); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread has another root
		result <- func() error {
			if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), Detach()); err != nil {
				return err
			}
			proc, err := NewProc()
			if err != nil {
				return err
			}
			defer unix.Close(proc)
			if err := errors.Join(unix.Chroot(root), unix.Chdir("/")); err != nil {
				return err
			}
			inside, err := Open("/")
			if err != nil {
				return err
			}
			defer inside.Close()
			if err := mountProc(inside, proc); err == nil {
				return errors.New("mountProc = nil, want an error")
			}
			if left, err := os.ReadDir("/volume"); err != nil || len(left) > 0 {
				return fmt.Errorf("behind the link are %d files, %v, want none", len(left), err)
			}
			return nil
		}()
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// What the guest's tmpfs covers is read-only, with the mounts below in place. A directory that only the tmpfs needs is
// not made, nor anything below it.
func TestCoveredDirectories(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts, which needs root")
	}
	dir, source := t.TempDir(), t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "covered/below"), 0o755), os.WriteFile(filepath.Join(source, "file"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread has other mounts
		result <- func() error {
			if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), Detach()); err != nil {
				return err
			}
			var mounts []Mount
			for _, m := range []struct {
				target string
				bind   bool
			}{{"/covered", false}, {"/covered/below", true}, {"/run", false}, {"/run/x/y", true}, {"/runs", true}} {
				var tree *os.File
				if m.bind {
					var err error
					if tree, err = CopyTree(source); err != nil {
						return err
					}
				}
				mounts = append(mounts, Mount{target: m.target, tree: tree})
			}
			root, err := Open(dir)
			if err != nil {
				return err
			}
			if err := errors.Join(attachAll(root, mounts), root.Close()); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "covered/new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("a write where the tmpfs is: %v, want %v", err, unix.EROFS)
			}
			for _, name := range []string{"covered/below/file", "runs/file"} {
				if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
					return err
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "covered/below/new"), nil, 0o644); err != nil {
				return err
			}
			if _, err := os.Lstat(filepath.Join(dir, "run")); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("stat /run: %v, want that it is not there", err)
			}
			return nil
		}()
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}
