package lockdown

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// allowed are the system calls of a process that carries bytes: those of Go's runtime,
// and those on what it has open. What is not here fails with EPERM. A name that an
// architecture does not have is skipped there.
var allowed = []string{
	// Memory.
	"brk", "madvise", "membarrier", "mincore", "mmap", "mprotect", "mremap", "munmap",
	// Threads, their signals and their end. That clone makes no namespace is below.
	"exit", "exit_group", "futex", "get_robust_list", "getpid", "getppid", "gettid", "restart_syscall", "rseq",
	"rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigtimedwait",
	"sched_getaffinity", "sched_getparam", "sched_getscheduler", "sched_yield", "set_robust_list", "set_tid_address", "sigaltstack", "tgkill", "tkill",
	// Time and chance.
	"clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "getrandom", "gettimeofday", "nanosleep", "setitimer",
	"timer_create", "timer_delete", "timer_gettime", "timer_settime",
	// Waiting.
	"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "poll", "ppoll", "pselect6", "select",
	// Children, and who they are.
	"getegid", "geteuid", "getgid", "getresgid", "getresuid", "getuid", "kill", "pidfd_open", "pidfd_send_signal", "prlimit64", "getrlimit", "getrusage", "sysinfo",
	"wait4", "waitid",
	// Files that are open, and those that Landlock lets it read.
	"close", "close_range", "copy_file_range", "dup", "dup2", "dup3", "fadvise64", "fcntl", "fstat", "fstatfs", "ioctl", "lseek",
	"newfstatat", "openat", "openat2", "pipe", "pipe2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2",
	"read", "readlinkat", "readv", "sendfile", "splice", "tee", "uname", "write", "writev",
	// Watching files, in a working directory of the thread's own. What unshare may do is below.
	"chdir", "fchdir", "inotify_add_watch", "inotify_init1", "inotify_rm_watch",
	// Sockets. Of which kind is below.
	"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom", "recvmmsg", "recvmsg",
	"sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
}

// mountCalls are those of a process that mounts what it has open.
var mountCalls = []string{"mount_setattr", "move_mount", "open_tree", "statx", "umount2"}

// namespaceFlags are the flags of clone(2) that make a namespace.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

// policy is the filter in the words of config.json, with more calls allowed.
func policy(more ...string) *specs.LinuxSeccomp {
	calls := []specs.LinuxSyscall{
		{Names: slices.Concat(allowed, more), Action: specs.ActAllow},
		{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
			{Index: 0, Value: namespaceFlags, ValueTwo: 0, Op: specs.OpMaskedEqual},
		}},
		{Names: []string{"unshare"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
			{Index: 0, Value: unix.CLONE_FS, Op: specs.OpEqualTo},
		}},
	}
	for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
		calls = append(calls, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
			{Index: 0, Value: family, Op: specs.OpEqualTo},
		}})
	}
	eperm := uint(unix.EPERM)
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &eperm, Syscalls: calls}
}
