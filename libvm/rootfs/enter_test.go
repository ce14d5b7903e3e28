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
