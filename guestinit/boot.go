package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// newRoot is where the root file system is put together. It is a directory of
// the kernel's built-in initramfs or made there.
const newRoot = "/newroot"

// systemMount is one file system of the guest itself. Containers get their own.
type systemMount struct {
	dir     string
	fstype  string
	flags   uintptr
	options string
}

const noExecDevSuid = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

var systemMounts = []systemMount{
	{"/proc", "proc", noExecDevSuid, ""},
	{"/sys", "sysfs", noExecDevSuid, ""},
	{"/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
	{"/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
	{"/run", "tmpfs", noExecDevSuid, "mode=0755"},
	// nsdelegate: a container must not change the limits on its own cgroup.
	{"/sys/fs/cgroup", "cgroup2", noExecDevSuid, "nsdelegate"},
}

// kernelParameters are those that a host of containers sets and the kernel does
// not. A container's own come later, from its spec.
var kernelParameters = []struct{ path, value string }{
	{"/proc/self/oom_score_adj", "-1000"},
	// The host shall see within two seconds what is written into a shared mapping of its files; the
	// kernel's own values give it half a minute.
	{"/proc/sys/vm/dirty_writeback_centisecs", "100"},
	{"/proc/sys/vm/dirty_expire_centisecs", "100"},
	// A host has more memory than its containers. What one of them only reserves must not be refused because
	// its VM is smaller: it counts when it is touched, and then the limit kills.
	{"/proc/sys/vm/overcommit_memory", "1"},
	// An idle guest shall sleep: the kernel would look twice a second whether memory is in pieces, and each
	// second at the counters of each processor.
	{"/proc/sys/vm/compaction_proactiveness", "0"},
	{"/proc/sys/vm/stat_interval", "10"},
}

// mostFiles is how many files guestinit may have open, and a process whose spec says
// nothing of it.
const mostFiles = 1048576

// switchRoot replaces the initramfs by a tmpfs as root. A container's
// pivot_root needs that: the initial file system cannot be pivoted away.
func switchRoot() error {
	if err := os.Mkdir(newRoot, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := mount("tmpfs", newRoot, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		return err
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// tracingMounts are file systems that only a kernel that traces has. The kernel makes their mount points.
var tracingMounts = []systemMount{
	{"/sys/kernel/debug", "debugfs", noExecDevSuid, ""},
	{"/sys/kernel/tracing", "tracefs", noExecDevSuid, ""},
}

func mountSystem() error {
	unix.Umask(0o022)
	for _, m := range systemMounts {
		if err := os.Mkdir(m.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := mount(m.fstype, m.dir, m.fstype, m.flags, m.options); err != nil {
			return err
		}
	}
	for _, m := range tracingMounts {
		if err := mount(m.fstype, m.dir, m.fstype, m.flags, m.options); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// adoptConsole makes the console the standard streams if it was not there yet
// when the kernel started PID 1, which happens when the kernel boots faster than
// QEMU answers. Until then they are a file of the initramfs. Nothing announces
// the console, so this polls.
func adoptConsole() {
	var st unix.Stat_t
	if err := unix.Fstat(unix.Stderr, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR {
		return
	}
	go func() {
		for end := time.Now().Add(portTimeout); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			for i := range 3 {
				_ = unix.Dup3(fd, i, 0) // without the console guestinit works, unheard
			}
			_ = unix.Close(fd)
			return
		}
	}()
}

func setKernelParameters() error {
	for _, p := range kernelParameters {
		if err := setKernelParameter(p.path, p.value); err != nil {
			return err
		}
	}
	for name, limit := range guestproto.KernelLimits {
		if err := setKernelParameter("/proc/sys/"+name, strconv.FormatUint(limit, 10)); err != nil {
			return err
		}
	}
	return nil
}

// setKernelParameter leaves out what the kernel lacks: config.json may name one that has
// fewer parameters.
func setKernelParameter(path, value string) error {
	if err := writeFile(path, value); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// takeOver sets kernel parameters of the host's. Where this kernel takes no such value,
// it keeps its own.
func takeOver(parameters map[string]string) {
	for _, name := range slices.Sorted(mapKeys(parameters)) {
		if err := setKernelParameter("/proc/sys/"+name, parameters[name]); err != nil {
			logf("take over from the host: %v", err)
		}
	}
}

// setResourceLimits sets what processes inherit whose spec says nothing. The last four
// of these limits hold for a container's user namespace as a whole too, which gets
// guestinit's.
func setResourceLimits() error {
	const unlimited = unix.RLIM_INFINITY
	for resource, limit := range map[int]uint64{
		unix.RLIMIT_NOFILE: mostFiles,
		unix.RLIMIT_NPROC:  unlimited, unix.RLIMIT_MEMLOCK: unlimited, unix.RLIMIT_SIGPENDING: unlimited, unix.RLIMIT_MSGQUEUE: unlimited,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
	}
	return nil
}

// mount is mount(2) with an error that reads like the call.
func mount(source, target, fstype string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %s:%s, type %q, flags %#x, options %q: %w", source, target, fstype, flags, options, err)
	}
	return nil
}

// writeFile writes a file of a kernel file system, in a single write.
func writeFile(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("write %q to %s: %w", value, path, err)
	}
	return nil
}

// readFile reads a file of a kernel file system that is shorter than 8 KiB.
// Unlike os.ReadFile it does not ask whether such a file can be waited for.
func readFile(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf, have := make([]byte, 8<<10), 0
	for have < len(buf) {
		n, err := unix.Read(fd, buf[have:])
		if err != nil {
			return "", &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			break
		}
		have += n
	}
	return string(buf[:have]), nil
}

// makeLoopNodes makes what devtmpfs has on machines where loop devices are made
// at boot. Here the kernel makes each when its node is opened, and a container
// whose user namespace keeps it from making nodes binds them.
func makeLoopNodes() error {
	const major = 7 // LOOP_MAJOR, linux/major.h
	for i := range guestproto.LoopDevices {
		path := fmt.Sprintf("/dev/loop%d", i)
		if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(major, uint32(i)))); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mknod", Path: path, Err: err}
		}
	}
	return nil
}
