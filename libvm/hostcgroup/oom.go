package hostcgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An OOMBell shows on the host that a container's memory ran out when the host
// itself did not see it happen. Callers watch the cgroup: containerd's shim and
// conmon by an eventfd on memory.oom_control, or by oom_kill in memory.events of
// version 2. They learn of a kill from the kernel only, and the kernel only tells
// of its own kills. So Ring makes the kernel kill: a process made for the purpose
// runs into a limit of the cgroup.
//
// A cgroup below would not do. On version 1 the kernel tells the cgroup that ran
// out and those below it (mem_cgroup_oom_notify). On version 2 a cgroup with
// processes has no children with a memory controller.
type OOMBell struct {
	usage    []*os.File // what is charged
	limits   []limitFile
	control  *os.File // memory.oom_control of version 1, or nil
	events   *os.File // cgroup.event_control of version 1, or nil
	oomScore *os.File // the caller's own oom_score_adj
}

// limitFile is a limit that Ring lowers, in the order of lowering.
type limitFile struct {
	file *os.File
	swap bool // what goes beyond memory into swap: zero for the purpose (version 2)
}

// MemoryDir is the directory of the memory controller, empty where there is none.
func (c *Cgroup) MemoryDir() string {
	paths := c.manager.GetPaths()
	if dir, ok := paths["memory"]; ok {
		return dir
	}
	return paths[""]
}

// OpenOOMBell opens the files of the host that Ring needs, for a caller that is
// about to leave the host's file systems. Dir is a MemoryDir. If the host has no
// memory controller, the error matches fs.ErrNotExist.
func OpenOOMBell(dir string) (_ *OOMBell, err error) {
	b := &OOMBell{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	open := func(name string, flags int) (*os.File, error) { return os.OpenFile(filepath.Join(dir, name), flags, 0) }
	if _, err := os.Stat(filepath.Join(dir, "memory.max")); err == nil {
		err = b.open(open, []string{"memory.current"}, []string{"memory.swap.max", "memory.max"})
		if err != nil {
			return nil, err
		}
	} else if err := b.open(open, []string{"memory.usage_in_bytes", "memory.memsw.usage_in_bytes"},
		[]string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}); err != nil {
		return nil, err
	}
	if b.control, err = open("memory.oom_control", os.O_RDONLY); err == nil {
		b.events, err = open("cgroup.event_control", os.O_WRONLY)
	}
	// A delegated cgroup may not have them for its user.
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	if len(b.usage) == 0 || len(b.limits) == 0 {
		return nil, &os.PathError{Op: "look for memory limits", Path: dir, Err: fs.ErrNotExist}
	}
	if b.oomScore, err = os.OpenFile("/proc/self/oom_score_adj", os.O_RDWR, 0); err != nil {
		return nil, err
	}
	return b, nil
}

// open opens the files that there are: those of swap are missing where that is not
// counted.
func (b *OOMBell) open(open func(string, int) (*os.File, error), usage, limits []string) error {
	for _, name := range usage {
		f, err := open(name, os.O_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		b.usage = append(b.usage, f)
	}
	for _, name := range limits {
		f, err := open(name, os.O_RDWR)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		b.limits = append(b.limits, limitFile{f, name == "memory.swap.max"})
	}
	return nil
}

// Close closes the files. A bell may be closed before it has rung.
func (b *OOMBell) Close() error {
	var errs []error
	for _, f := range b.usage {
		errs = append(errs, f.Close())
	}
	for _, l := range b.limits {
		errs = append(errs, l.file.Close())
	}
	for _, f := range []*os.File{b.control, b.events, b.oomScore} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

const (
	// minRoomBytes is the least room that the limit leaves above what is in use.
	minRoomBytes = 16 << 20
	// stockBytes is what each processor of the kernel's may have charged ahead.
	stockBytes = 256 << 10
	// victimCount is how many processes are there to be killed.
	victimCount = 4
	// ringPatience bounds the wait for the kernel. An emulated machine takes some
	// seconds to fill the room, a busy one as many times longer.
	ringPatience = 30 * time.Second
)

// Ring makes the kernel kill a process of the cgroup for lack of memory. The caller
// is in the cgroup, where nothing else may be that must live. The limits are as
// before when Ring returns.
func (b *OOMBell) Ring() (err error) {
	used, err := b.used()
	if err != nil {
		return err
	}
	room, err := roomBytes()
	if err != nil {
		return err
	}
	// As much as the limit, since what is in use now may be given back meanwhile.
	length := int(used+2*room) + runtime.NumCPU()*stockBytes
	memory, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("map memory: %w", err)
	}
	defer func() { _ = unix.Munmap(memory) }()
	if err := unix.Madvise(memory, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("madvise: %w", err)
	}
	start, release, err := os.Pipe()
	if err != nil {
		return err
	}
	defer start.Close()
	defer release.Close()
	v := &victim{
		memory: unsafe.Pointer(&memory[0]), length: uintptr(length), start: start.Fd(), release: release.Fd(), buf: make([]byte, 1),
	}
	own, err := read(b.oomScore)
	if err != nil {
		return err
	}
	victims, err := b.sacrifice(v)
	defer func() { err = errors.Join(err, victims.reap(), write(b.oomScore, own)) }()
	if err != nil {
		return err
	}
	// A caller that has a victim's score itself lays it down, as far as it may: a
	// score above 0 can be a floor (oom_score_adj_min).
	if err := write(b.oomScore, "0"); err != nil {
		if err := write(b.oomScore, own); err != nil {
			return err
		}
	}
	if used, err = b.used(); err != nil {
		return err
	}
	restore, err := b.lower(used + room)
	defer func() { err = errors.Join(err, restore()) }()
	if err != nil {
		return err
	}
	signs := slices.Clone([]*os.File(victims))
	told, err := b.told()
	if err != nil {
		return err
	}
	if told != nil {
		defer told.Close()
		signs = append(signs, told)
	}
	// One of the victims reads the byte, and takes what there is.
	if _, err := release.Write([]byte{1}); err != nil {
		return err
	}
	return await(signs, ringPatience)
}

// told is a descriptor that can be read when the kernel has told the watchers of a
// cgroup whose OOM killer is off: it kills nothing there. It is nil where the kernel
// kills.
func (b *OOMBell) told() (*os.File, error) {
	if b.events == nil {
		return nil, nil
	}
	text, err := read(b.control)
	if err != nil || !strings.HasPrefix(text, "oom_kill_disable 1") {
		return nil, err
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	event := os.NewFile(uintptr(fd), "eventfd")
	if err := write(b.events, fmt.Sprintf("%d %d", fd, b.control.Fd())); err != nil {
		return nil, errors.Join(err, event.Close())
	}
	return event, nil
}

// victims are the processes made for the kernel to kill, by their pidfds.
type victims []*os.File

// sacrifice starts the victims, which have the score that they are killed for before
// all others from their birth: a child has its parent's, which is left with it. What
// was started is returned with an error, too. The caller reaps it.
//
// One victim is not enough. The kernel counts a victim as gone before all of its
// memory is, and kills the next process that asks then (MMF_OOM_SKIP in exit_mmap,
// Linux 6.18): without a second victim it was the caller in 2 of 100 runs.
func (b *OOMBell) sacrifice(v *victim) (victims, error) {
	if err := write(b.oomScore, "1000"); err != nil {
		return nil, err
	}
	var started victims
	for range victimCount {
		syscall.ForkLock.Lock()
		errno := forkVictim(v)
		syscall.ForkLock.Unlock()
		if errno != 0 {
			return started, fmt.Errorf("fork: %w", errno)
		}
		started = append(started, os.NewFile(uintptr(v.pidfd), "victim"))
	}
	return started, nil
}

// await waits until one of the files can be read: a victim's, which has ended, or
// the one that told returned.
func await(signs []*os.File, patience time.Duration) error {
	var fds []unix.PollFd
	for _, f := range signs {
		fds = append(fds, unix.PollFd{Fd: int32(f.Fd()), Events: unix.POLLIN})
	}
	deadline := time.Now().Add(patience)
	for {
		n, err := unix.Poll(fds, int(max(time.Until(deadline), 0).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			return errors.New("the kernel has killed nothing")
		}
		return err
	}
}

// reap ends the victims that have not ended, and closes their pidfds.
func (vs victims) reap() error {
	var errs []error
	for _, v := range vs {
		fd := int(v.Fd())
		err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		if errors.Is(err, unix.ESRCH) {
			err = nil
		}
		for err == nil {
			if err = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED, nil); !errors.Is(err, unix.EINTR) {
				break
			}
			err = nil
		}
		errs = append(errs, err, v.Close())
	}
	return errors.Join(errs...)
}

// roomBytes is how far above what is in use the limit is set. It decides whom the
// kernel takes: a score of 1000 counts as the limit in pages, rounded down to
// thousands (oom_badness, Linux 6.18), and the caller counts with its resident
// pages, those of its program included, which nobody has charged to the cgroup. At
// twice the caller's pages a victim that has touched nothing comes before the caller.
func roomBytes() (int64, error) {
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return max(minRoomBytes, 2*use.Maxrss<<10), nil
}

// used is how many bytes are charged, with swap where that is more.
func (b *OOMBell) used() (int64, error) {
	var most int64
	for _, file := range b.usage {
		text, err := read(file)
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file.Name(), err)
		}
		most = max(most, n)
	}
	return most, nil
}

// lower sets the limits: memory, and what goes beyond it into swap. The function
// that it returns sets them back.
func (b *OOMBell) lower(limit int64) (restore func() error, err error) {
	type setting struct {
		file  *os.File
		value string
	}
	var done []setting
	restore = func() (err error) {
		for i := len(done) - 1; i >= 0; i-- {
			err = errors.Join(err, write(done[i].file, done[i].value))
		}
		return err
	}
	for _, l := range b.limits {
		old, err := read(l.file)
		if err != nil {
			return restore, err
		}
		value := strconv.FormatInt(limit, 10)
		if l.swap {
			value = "0"
		}
		if err := write(l.file, value); err != nil {
			return restore, err
		}
		done = append(done, setting{l.file, old})
	}
	return restore, nil
}

// read reads a file of the kernel's from its beginning, which makes its text anew.
func read(f *os.File) (string, error) {
	buf := make([]byte, 64) // a number
	n, err := f.ReadAt(buf, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return string(bytes.TrimSpace(buf[:n])), err
}

func write(f *os.File, value string) error {
	if _, err := f.WriteAt([]byte(value), 0); err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}

// victim is what the process to be killed needs. It cannot allocate.
type victim struct {
	memory         unsafe.Pointer
	length         uintptr
	start, release uintptr
	buf            []byte
	pidfd          int32 // written by the kernel, close-on-exec
}

// The runtime's own fork hooks, as package syscall uses them: they block
// signals around the fork and forbid stack growth in the child.
//
//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// forkVictim starts a process that waits for a byte and then touches memory until
// it is killed. Its pidfd is in v then. After the fork it may call nosplit functions
// only and must not allocate.
//
//go:noinline
//go:norace
//go:nocheckptr
func forkVictim(v *victim) syscall.Errno {
	var i uintptr
	buf, pidfd := unsafe.Pointer(&v.buf[0]), unsafe.Pointer(&v.pidfd)
	runtimeBeforeFork()
	n, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD)|unix.CLONE_PIDFD, 0, uintptr(pidfd), 0, 0, 0)
	if errno != 0 || n != 0 {
		runtimeAfterFork()
		return errno
	}
	runtimeAfterForkInChild()
	// Without its own end the pipe shows when the parent has gone.
	syscall.RawSyscall(syscall.SYS_CLOSE, v.release, 0, 0)
	n, _, errno = syscall.RawSyscall(syscall.SYS_READ, v.start, uintptr(buf), 1)
	if errno != 0 || n != 1 {
		goto exit
	}
	for i = 0; i < v.length; i += 4096 {
		*(*byte)(unsafe.Add(v.memory, i)) = 1
	}
exit:
	syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
	return 0
}
