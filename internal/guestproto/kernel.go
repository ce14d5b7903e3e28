package guestproto

// KernelLimits are limits of a kernel for all that runs on it, by their path below
// /proc/sys, with what every guest has from its boot. A host that has more says so in
// CreateRequest.KernelParameters, which costs an emulated start 3 ms each. What a
// guest's kernel would choose itself follows from the VM's memory, which is less than a
// host's.
var KernelLimits = map[string]uint64{
	"fs/aio-max-nr":              65536, // the kernel's own, as are those of pipe and mounts below
	"fs/epoll/max_user_watches":  1<<31 - 1,
	"fs/file-max":                1<<63 - 1, // systemd's
	"fs/mount-max":               100000,
	"fs/nr_open":                 1073741816, // systemd's; engines ask for nofile 1048576 and "infinity"
	"fs/pipe-max-size":           1 << 20,
	"kernel/pid_max":             4194304, // systemd's, and the most there is
	"kernel/threads-max":         4194304,
	"net/core/optmem_max":        131072, // that of Linux 6.7 and later
	"net/core/rmem_max":          16 << 20,
	"net/core/wmem_max":          16 << 20, // hosts of fast networks have as much
	"user/max_cgroup_namespaces": 1<<31 - 1,
	"user/max_fanotify_groups":   128,
	"user/max_fanotify_marks":    1<<31 - 1,
	"user/max_inotify_instances": 128,
	"user/max_inotify_watches":   524288, // systemd's
	"user/max_ipc_namespaces":    1<<31 - 1,
	"user/max_mnt_namespaces":    1<<31 - 1,
	"user/max_net_namespaces":    1<<31 - 1,
	"user/max_pid_namespaces":    1<<31 - 1,
	"user/max_time_namespaces":   1<<31 - 1,
	"user/max_user_namespaces":   1<<31 - 1,
	"user/max_uts_namespaces":    1<<31 - 1,
	"vm/max_map_count":           1048576, // that of newer distributions; search engines ask for 262144
}
