package libvm

import (
	"errors"
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
// EBADF). So the monitor has the guest forget the files that nobody uses well
// before the limit. How many there are only the guest can tell cheaply, and asking
// it costs an emulated one a hundred times what a look costs the host. Therefore
// the host looks first: at the size that virtiofsd's table of descriptors has
// grown to, and at whether virtiofsd has done anything since.

// filesPerSecond is faster than a guest can look files up.
const filesPerSecond = 50_000

// Bounds on the time between two looks, and the least between two when forgetting
// did not help: the files are in use.
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
// more files open than its own limit. It closes the process's files.
func (m *monitor) watchFiles(p *fileServer) {
	defer p.close()
	limit, err := m.vmm.maxFiles()
	if err != nil {
		return // it has ended
	}
	for worked := ""; ; {
		table, err := p.tableSize()
		now := worked
		if err == nil && table > limit/2 { // below, it never had more files open
			now, err = p.work()
		}
		if err != nil {
			m.log.Debug("look at virtiofsd's files", "error", err)
			return
		}
		wait := untilNextLook(min(table, limit), limit)
		switch {
		case now != worked:
			worked = now
			wait = m.forgetFiles(limit)
		case table > limit/2: // nothing has happened since
			wait = max(wait, lookAgain)
		}
		select {
		case <-m.lost:
			return
		case <-time.After(wait):
		}
	}
}

// forgetFiles has the guest forget files if it knows more than half of what
// virtiofsd can have open, and returns when to look again. The guest's number
// may be anything: a wrong one costs its own container files.
func (m *monitor) forgetFiles(limit int) time.Duration {
	var r guestproto.ForgetReply
	err := m.ask(guestproto.OpForget, guestproto.ForgetRequest{Above: limit / 2}, &r)
	if r.Before > limit/2 || err != nil {
		m.log.Debug("had the guest forget files", "before", r.Before, "after", r.After, "limit", limit, "error", err)
	}
	wait := untilNextLook(min(max(r.After, 0), limit), limit)
	if err != nil || r.After > limit/2 {
		wait = max(wait, lookAgain)
	}
	return wait
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

// fileServer is what the kernel says of the process that does virtiofsd's work:
// two files of it in a proc, which outlive the monitor's view of the host.
type fileServer struct{ status, stat *os.File }

func (p *fileServer) close() {
	for _, f := range []*os.File{p.status, p.stat} {
		if f != nil {
			_ = f.Close() // read-only
		}
	}
}

// openFileServer must be called before the monitor leaves the host's file systems.
// virtiofsd has taken its share by now, so the second process that does its work
// is there. The caller closes what it returns.
func (v *vmm) openFileServer() (_ *fileServer, err error) {
	proc, err := newProc() // of the pid namespace that the pids are of
	if err != nil {
		return nil, err
	}
	defer unix.Close(proc)
	open := func(path string) (*os.File, error) {
		fd, err := unix.Openat(proc, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: "/proc/" + path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
	worker := strconv.Itoa(v.virtiofsd.pid)
	children, err := open(worker + "/task/" + worker + "/children")
	if err != nil {
		return nil, err
	}
	defer children.Close()
	text, err := io.ReadAll(children)
	if err != nil {
		return nil, err
	}
	if fields := strings.Fields(string(text)); len(fields) > 0 {
		worker = fields[0]
	}
	p := &fileServer{}
	if p.status, err = open(worker + "/status"); err == nil {
		p.stat, err = open(worker + "/stat")
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// tableSize is how many descriptors the process's table has room for. It grows in
// steps of a power of two and never shrinks: there never were more files open.
func (p *fileServer) tableSize() (int, error) {
	text, err := readAnew(p.status)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if size, ok := strings.CutPrefix(line, "FDSize:"); ok {
			return strconv.Atoi(strings.TrimSpace(size))
		}
	}
	return 0, errors.New("no FDSize in its status")
}

// work differs from what it was whenever the process has done something for a
// hundredth of a second: fields 14 and 15 of its stat, utime and stime (proc(5)).
func (p *fileServer) work() (string, error) {
	text, err := readAnew(p.stat)
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(text, ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return "", fmt.Errorf("malformed stat line %q", text)
	}
	return fields[11] + " " + fields[12], nil
}

// readAnew reads a file of proc from its beginning, which makes its text anew.
func readAnew(f *os.File) (string, error) {
	buf := make([]byte, 4096)
	n, err := f.ReadAt(buf, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return string(buf[:n]), err
}
