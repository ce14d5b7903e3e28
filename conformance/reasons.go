package main

// reasons says why a program fails with boxlite. Each stands up to reading the program's source.
var reasons = map[string]string{
	"delete": "Wants `delete` of a created container to fail. runc deletes it, and containerd relies on that to clean up; so does boxlite.",
	"delete_resources": "Compares the addresses of two numbers (`lpd.Limit == config.Linux.Resources.Pids.Limit`, both `*int64`), which no runtime can " +
		"make equal; its other three assertions hold.",
	"linux_cgroups_blkio": "Sets `leafWeight`, for which the host's kernel has no file since the CFQ scheduler left it in Linux 5.0. An unsupported value " +
		"must be an error, and create fails as runc's does.",
	"linux_cgroups_hugetlb":          "The host has no hugetlb controller in cgroup v1, and a limit that cannot be set fails create, as runc's does.",
	"linux_cgroups_memory":           memoryReason,
	"linux_cgroups_network":          networkReason,
	"linux_cgroups_pids":             pidsReason,
	"linux_cgroups_relative_blkio":   "As linux_cgroups_blkio.",
	"linux_cgroups_relative_hugetlb": "As linux_cgroups_hugetlb.",
	"linux_cgroups_relative_memory":  memoryReason,
	"linux_cgroups_relative_network": networkReason,
	"linux_cgroups_relative_pids":    pidsReason,
	"misc_props": "Its first case runs `/runtimetest`, which it does not copy into that bundle, and wants create and start to succeed; a missing command " +
		"fails create. Its other two cases hold.",
	"mounts": "Wants the root field of a bind in /proc/self/mountinfo to end as the source's name does. A bind is a virtio-fs submount in the guest, with " +
		"device and inode numbers of its own, and the root of a submount is `/`. The binds are there, in order and with their propagation.",
	"process_capabilities_fail": "Wants an unknown capability to fail create, as the specification did before 1.1. Since then a warning is what it asks for, " +
		"and what runc and boxlite give.",
	"process_rlimits": "Judges RLIMIT_NOFILE from inside a Go program, whose runtime raises its own soft limit as it starts (Go 1.19 and later). The process " +
		"is given the limit that was asked for.",
	"start": "Its last case wants `start` without `process` to succeed (`err == nil`), under the name \"MUST generate an error\". boxlite creates such a " +
		"container and refuses to start it, so it never stops either; its other six assertions hold.",
}

const (
	memoryReason = "Wants the container's limits to the byte in the host's cgroup. There they are raised by what the VM itself takes, and the guest holds " +
		"the exact ones. Its assertions on kernel memory fail with runc too: neither sets those limits any more, which Linux has deprecated."
	networkReason = "The host has no net_cls and net_prio controllers in cgroup v1, and a class that cannot be set fails create, as runc's does."
	pidsReason    = "As delete_resources: compares the addresses of two numbers."
)

// unsteady says why a program ends now one way and now the other. Its result is shown, but check passes over it.
var unsteady = map[string]string{
	"killsig": "Sends its signal as soon as `state` says running, and is content only if the shell in the container has come to its `wait` by " +
		"then: before its `trap` the kernel drops the signal, as for every PID 1, and after that the shell waits for its `sleep` all the " +
		"same. An emulated processor needs tens of milliseconds to get there.",
	"pidfile": "Wants `kill` to succeed on a container whose process is `true` and may have ended.",
}
