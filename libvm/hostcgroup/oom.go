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
	"strconv"
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
	if b.oomScore != nil {
		errs = append(errs, b.oomScore.Close())
	}
	return errors.Join(errs...)
}

const (
	// slackBytes is the room that the limit leaves above what is in use: for the
	// caller, who goes on in the cgroup.
	slackBytes = 4 << 20
	// stockBytes is what each processor of the kernel's may have charged ahead.
	stockBytes = 256 << 10
	// ringPatience bounds the wait for the kernel, which does not kill in a
	// cgroup whose OOM killer is off; it tells the watchers all the same.
	ringPatience = 2 * time.Second
)

// Ring makes the kernel kill a process of the cgroup for lack of memory. The caller
// is in the cgroup, where nothing else may be that must live. The limits are as
// before when Ring returns.
func (b *OOMBell) Ring() (err error) {
	limit, err := b.limit()
	if err != nil {
		return err
	}
	// As much as the limit, since what is in use now may be given back meanwhile.
	length := int(limit) + runtime.NumCPU()*stockBytes + 1<<20
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
	pid, err := b.sacrifice(v)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reap(pid)) }()
	restore, err := b.lower(strconv.FormatInt(limit, 10))
	defer func() { err = errors.Join(err, restore()) }()
	if err != nil {
		return err
	}
	if _, err := release.Write([]byte{1}); err != nil {
		return err
	}
	return await(pid, ringPatience)
}

// sacrifice starts the victim, which has the score that it is killed for before all
// others from its birth: a child has its parent's, which has it for that moment.
func (b *OOMBell) sacrifice(v *victim) (pid int, err error) {
	own, err := read(b.oomScore)
	if err != nil {
		return 0, err
	}
	if err := write(b.oomScore, "1000"); err != nil {
		return 0, err
	}
	syscall.ForkLock.Lock()
	child, errno := forkVictim(v)
	syscall.ForkLock.Unlock()
	err = write(b.oomScore, own)
	if errno != 0 {
		return 0, errors.Join(fmt.Errorf("fork: %w", errno), err)
	}
	if err != nil {
		return 0, errors.Join(err, reap(int(child)))
	}
	return int(child), nil
}

// limit is a little more than what is in use.
func (b *OOMBell) limit() (int64, error) {
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
	return most + slackBytes, nil
}

// lower sets the limits: memory, and what goes beyond it into swap. The function
// that it returns sets them back.
func (b *OOMBell) lower(limit string) (restore func() error, err error) {
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
		value := limit
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

// await waits until a child has ended.
func await(pid int, patience time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(patience)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(time.Until(deadline), 0).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			return errors.New("the kernel has killed nothing")
		}
		return err
	}
}

// reap ends a child, if it has not ended.
func reap(pid int) error {
	_ = unix.Kill(pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// victim is what the process to be killed needs. It cannot allocate.
type victim struct {
	memory         unsafe.Pointer
	length         uintptr
	start, release uintptr
	buf            []byte
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
// it is killed. After the fork it may call nosplit functions only and must not
// allocate.
//
//go:noinline
//go:norace
//go:nocheckptr
func forkVictim(v *victim) (pid uintptr, errno syscall.Errno) {
	var n, i uintptr
	buf := unsafe.Pointer(&v.buf[0])
	runtimeBeforeFork()
	pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		runtimeAfterFork()
		return pid, errno
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
	return 0, 0
}
