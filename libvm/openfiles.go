package libvm

import (
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"boxlite/internal/guestproto"
)

// virtiofsd keeps a descriptor for every file that the guest's kernel knows, and
// the kernel knows a file until it is short of memory, which may be long after
// virtiofsd has come to its limit; then opening and closing files fails (EMFILE,
// EBADF). Nothing tells how many there are, so the monitor counts virtiofsd's
// descriptors, and has the guest forget the files that nobody uses well before
// the limit. The count is the host's because a look costs an emulated guest a
// hundred times what it costs the host, in an idle container too.

// filesPerSecond is faster than a guest can look files up.
const filesPerSecond = 50_000

// Bounds on the time between two looks at the count, and the least between two
// when forgetting did not help: the files are in use.
const (
	lookSoonest = 20 * time.Millisecond
	lookLatest  = 10 * time.Second
	lookAgain   = 500 * time.Millisecond
)

// untilNextLook is how long no guest takes to come to the limit.
func untilNextLook(open, limit int) time.Duration {
	room := time.Duration(limit-open) * time.Second / filesPerSecond
	return min(max(room, lookSoonest), lookLatest)
}

// watchFiles keeps the number of open files below virtiofsd's limit until the VM
// ends. What is in use cannot be forgotten, as a process in the guest cannot have
// more files open than its own limit. It closes descriptors, see openDescriptors.
func (m *monitor) watchFiles(descriptors *os.File) {
	defer descriptors.Close()
	limit, err := m.vmm.maxFiles()
	if err != nil {
		return // it has ended
	}
	for asked := false; ; {
		open, err := countDescriptors(descriptors)
		if err != nil {
			m.log.Debug("count open files", "error", err)
			return
		}
		wait := untilNextLook(open, limit)
		if open > limit/2 {
			err := m.ask(guestproto.OpForget, nil, nil)
			m.log.Debug("had the guest forget files", "open", open, "limit", limit, "error", err)
			if asked || err != nil {
				wait = max(wait, lookAgain)
			}
			asked = err == nil
		} else {
			asked = false
		}
		select {
		case <-m.lost:
			return
		case <-time.After(wait):
		}
	}
}

// maxFiles is how many files virtiofsd can have open: its limit of descriptors,
// which it raises as far as it may when it starts.
func (v *vmm) maxFiles() (int, error) {
	var limit unix.Rlimit
	if err := unix.Prlimit(v.virtiofsd.pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return 0, err
	}
	return int(min(limit.Cur, math.MaxInt32)), nil
}

// openDescriptors opens the directory of virtiofsd's descriptors in a proc of its
// own: the monitor's /proc will be the container's. virtiofsd has taken its share
// by now, so the second process that does its work is there. The caller closes it.
func (v *vmm) openDescriptors() (*os.File, error) {
	fd, err := newProc()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	proc, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	pid := v.virtiofsd.pid
	children, err := proc.ReadFile(fmt.Sprintf("%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	worker := strconv.Itoa(pid)
	if fields := strings.Fields(string(children)); len(fields) > 0 {
		worker = fields[0]
	}
	return proc.Open(worker + "/fd")
}

// countDescriptors counts what is in a directory of descriptors. From Linux 6.2
// on, its size is their number.
func countDescriptors(dir *os.File) (int, error) {
	st, err := dir.Stat()
	if err != nil {
		return 0, err
	}
	if size := st.Size(); size > 0 {
		return int(min(size, math.MaxInt32)), nil
	}
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	names, err := dir.Readdirnames(-1)
	return len(names), err
}
