package hostcgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An OOMBell shows on the host that a container's memory ran out, where the host
// itself did not see it happen: whoever watches the cgroup (containerd's shim and
// conmon by an eventfd on memory.oom_control, or by oom_kill in memory.events of
// version 2) learns of it from the kernel only, and the kernel only tells of
// what it did. So Ring has it done: a process made for the purpose runs into a
// limit of the cgroup and is killed for it.
//
// A cgroup below would not do. On version 1 the kernel tells the cgroup that ran
// out and those below it (mem_cgroup_oom_notify), and on version 2 a cgroup with
// processes has no children with a memory controller.
type OOMBell struct {
	dir     *os.File
	proc    *os.File // /proc
	unified bool
}

// MemoryDir is the directory of the memory controller, empty where there is none.
func (c *Cgroup) MemoryDir() string {
	paths := c.manager.GetPaths()
	if dir, ok := paths["memory"]; ok {
		return dir
	}
	return paths[""]
}

// OpenOOMBell opens what Ring needs of the host's file systems, for a caller
// that is about to leave them. Dir is a MemoryDir.
func OpenOOMBell(dir string) (*OOMBell, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	b := &OOMBell{dir: d, proc: proc}
	_, err = b.read("memory.max")
	b.unified = err == nil
	return b, nil
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

// Ring has the kernel kill a process of the cgroup for lack of memory. The
// caller is in the cgroup, and nothing else that must live. The limits are as
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
		memory: unsafe.Pointer(&memory[0]), length: uintptr(length), proc: b.proc.Fd(), start: start.Fd(), release: release.Fd(),
		path: append([]byte("self/oom_score_adj"), 0), score: []byte("1000"), buf: make([]byte, 1),
	}
	syscall.ForkLock.Lock()
	pid, errno := forkVictim(v)
	syscall.ForkLock.Unlock()
	if errno != 0 {
		return fmt.Errorf("fork: %w", errno)
	}
	defer func() { err = errors.Join(err, reap(int(pid))) }()
	restore, err := b.lower(strconv.FormatInt(limit, 10))
	defer func() { err = errors.Join(err, restore()) }()
	if err != nil {
		return err
	}
	if _, err := release.Write([]byte{1}); err != nil {
		return err
	}
	return await(int(pid), ringPatience)
}

// limit is a little more than what is in use.
func (b *OOMBell) limit() (int64, error) {
	files := []string{"memory.usage_in_bytes", "memory.memsw.usage_in_bytes"}
	if b.unified {
		files = []string{"memory.current"}
	}
	var most int64
	for _, file := range files {
		text, err := b.read(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // swap is not counted
		}
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		most = max(most, n)
	}
	return most + slackBytes, nil
}

// lower sets the limits: memory, and what goes beyond it into swap. The function
// that it returns sets them back.
func (b *OOMBell) lower(limit string) (restore func() error, err error) {
	type setting struct{ file, value string }
	settings := []setting{{"memory.limit_in_bytes", limit}, {"memory.memsw.limit_in_bytes", limit}}
	if b.unified {
		settings = []setting{{"memory.swap.max", "0"}, {"memory.max", limit}}
	}
	var done []setting
	restore = func() (err error) {
		for i := len(done) - 1; i >= 0; i-- {
			err = errors.Join(err, b.write(done[i].file, done[i].value))
		}
		return err
	}
	for _, s := range settings {
		old, err := b.read(s.file)
		if errors.Is(err, os.ErrNotExist) {
			continue // swap is not counted
		}
		if err != nil {
			return restore, err
		}
		if err := b.write(s.file, s.value); err != nil {
			return restore, err
		}
		done = append(done, setting{s.file, old})
	}
	return restore, nil
}

func (b *OOMBell) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(b.dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (b *OOMBell) read(name string) (string, error) {
	f, err := b.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	return string(bytes.TrimSpace(text)), err
}

func (b *OOMBell) write(name, value string) error {
	f, err := b.open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
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
	memory               unsafe.Pointer
	length               uintptr
	proc, start, release uintptr
	path, score, buf     []byte
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

// forkVictim starts a process that offers itself to the OOM killer before all
// others, waits for a byte and then touches memory until it is killed. After
// the fork it may call nosplit functions only and must not allocate.
//
//go:noinline
//go:norace
//go:nocheckptr
func forkVictim(v *victim) (pid uintptr, errno syscall.Errno) {
	var fd, n, i uintptr
	path, score, buf := unsafe.Pointer(&v.path[0]), unsafe.Pointer(&v.score[0]), unsafe.Pointer(&v.buf[0])
	runtimeBeforeFork()
	pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		runtimeAfterFork()
		return pid, errno
	}
	runtimeAfterForkInChild()
	fd, _, errno = syscall.RawSyscall6(syscall.SYS_OPENAT, v.proc, uintptr(path), syscall.O_WRONLY, 0, 0, 0)
	if errno != 0 {
		goto exit
	}
	_, _, errno = syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(score), 4)
	if errno != 0 {
		goto exit
	}
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
