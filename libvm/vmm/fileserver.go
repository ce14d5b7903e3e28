package vmm

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
)

// MaxFiles is how many files virtiofsd can have open for the guest: its limit of
// descriptors, which it raises as far as it may when it starts, without those that
// it keeps from the guest.
func (v *VM) MaxFiles() (int, error) {
	var limit unix.Rlimit
	if err := unix.Prlimit(v.virtiofsd.pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return 0, err
	}
	return maxFiles(limit.Cur, v.dialect), nil
}

// reservedFiles is how many descriptors the Rust virtiofsd keeps from the guest: one
// for each part of the guest's memory that there can be, 509, and 101 more. With
// fewer it ends.
const reservedFiles = 610

func maxFiles(limit uint64, dialect parts.Dialect) int {
	n := int(min(limit, math.MaxInt32))
	if dialect == parts.DialectRust {
		n = max(n-reservedFiles, 1)
	}
	return n
}

// FileServer reads what the kernel says of the process that does virtiofsd's work.
// It holds files of /proc open, so that it works after the monitor has left the
// host's file systems.
type FileServer struct {
	status, stat *os.File
	// Process is a pidfd of it. The root of its mount namespace is the share.
	Process *os.File
}

func (p *FileServer) Close() {
	for _, f := range []*os.File{p.status, p.stat, p.Process} {
		if f != nil {
			_ = f.Close() // read-only
		}
	}
}

// OpenFileServer opens the FileServer of the VM's virtiofsd, which the caller
// closes. It must be called before the monitor leaves the host's file systems.
// virtiofsd has taken its share by then, so there is the second process, which does
// virtiofsd's work.
func (v *VM) OpenFileServer() (_ *FileServer, err error) {
	proc, err := rootfs.NewProc() // of the pid namespace that the pids are of
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
	p := &FileServer{}
	if p.status, err = open(worker + "/status"); err == nil {
		p.stat, err = open(worker + "/stat")
	}
	if err == nil {
		p.Process, err = openProcess(worker)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func openProcess(pid string) (*os.File, error) {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(n, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", n, err)
	}
	return os.NewFile(uintptr(fd), "virtiofsd"), nil
}

// TableSize is the number of descriptors that the process's table has room for. The
// table grows in steps of a power of two and never shrinks. So there were never
// more files open than that.
func (p *FileServer) TableSize() (int, error) {
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

// Work returns the processor time that the process has used (fields 14 and 15 of
// its stat, utime and stime; proc(5)). The text changes whenever the process has
// worked for a hundredth of a second.
func (p *FileServer) Work() (string, error) {
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
