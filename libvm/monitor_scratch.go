package libvm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// scratchDir is where the sparse file is made. It never has a name there, so
// that the kernel removes it whatever ends the VM.
const scratchDir = "/var/tmp"

// makeScratch makes the disk: a sparse file without a name, formatted. The caller
// closes it.
func makeScratch(s *plan.Scratch) (*os.File, error) {
	f, err := os.OpenFile(scratchDir, os.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("scratch disk: %w", err)
	}
	if err := f.Truncate(s.SizeMiB << 20); err != nil {
		return nil, errors.Join(fmt.Errorf("scratch disk of %d MiB: %w", s.SizeMiB, err), f.Close())
	}
	// Without a journal: nobody looks at it after a crash.
	mkfs := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "nodiscard,lazy_itable_init=1", "/proc/self/fd/3")
	mkfs.Env = []string{"PATH=/usr/local/sbin:/usr/sbin:/sbin"}
	mkfs.ExtraFiles = []*os.File{f}
	if out, err := mkfs.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("scratch disk: mke2fs: %w: %s (Debian: apt-get install e2fsprogs)", err, fault.Quiet(strings.TrimSpace(string(out)))), f.Close())
	}
	return f, nil
}
