package main

// reasons says why a program fails with boxlite. Each stands up to reading the program's source.
var reasons = map[string]string{
	"delete": "The program wants `delete` of a created container to fail. runc deletes it, and so does boxlite, as containerd relies on " +
		"that to clean up.",
	"delete_resources": "The program compares the addresses of two numbers (`lpd.Limit == config.Linux.Resources.Pids.Limit`, both `*int64`). No " +
		"runtime can make them equal. Its other three assertions hold.",
	"linux_cgroups_blkio": "The program sets `leafWeight`. The host's kernel has no file for it since the CFQ scheduler left in Linux 5.0. An " +
		"unsupported value must be an error, so create fails, as runc's does.",
	"linux_cgroups_hugetlb":          "The host has no hugetlb controller in cgroup v1. A limit that cannot be set fails create, as runc's does.",
	"linux_cgroups_memory":           memoryReason,
	"linux_cgroups_network":          networkReason,
	"linux_cgroups_pids":             pidsReason,
	"linux_cgroups_relative_blkio":   "As linux_cgroups_blkio.",
	"linux_cgroups_relative_hugetlb": "As linux_cgroups_hugetlb.",
	"linux_cgroups_relative_memory":  memoryReason,
	"linux_cgroups_relative_network": networkReason,
	"linux_cgroups_relative_pids":    pidsReason,
	"misc_props": "The first case runs `/runtimetest`, which the program does not copy into that bundle, and wants create and start to " +
		"succeed. A missing command fails create. The other two cases hold.",
	"mounts": "The program wants a bind's root in /proc/self/mountinfo to end as the source's name does. In the guest a bind is a " +
		"virtio-fs submount, whose root is `/`. The binds are there, in order and with their propagation.",
	"process_capabilities_fail": "The program wants an unknown capability to fail create, as the specification did before 1.1. Since then the " +
		"specification asks for a warning, which runc and boxlite give.",
	"process_rlimits": "The program judges RLIMIT_NOFILE from inside a Go program. Since Go 1.19 the runtime raises its own soft limit as it " +
		"starts. The process is given the limit that was asked for.",
	"start": "The last case wants `start` without `process` to succeed (`err == nil`), under the name \"MUST generate an error\". " +
		"boxlite creates such a container and refuses to start it, so it never stops. The other six assertions hold.",
}

const (
	memoryReason = "The program wants the container's exact limits in the host's cgroup. There they are raised by what the VM takes; the " +
		"guest holds the exact ones. Limits of kernel memory fail with runc too: Linux has deprecated them, and neither sets " +
		"them."
	networkReason = "The host has no net_cls and net_prio controllers in cgroup v1. A class that cannot be set fails create, as runc's does."
	pidsReason    = "As delete_resources: the program compares the addresses of two numbers."
)

// unsteady says why a program ends now one way and now the other. Its result is shown, but check passes over it.
var unsteady = map[string]string{
	"killsig": "The program signals as soon as `state` says running. Until its shell has set a `trap`, the kernel drops the signal, as " +
		"for every PID 1. An emulated processor takes tens of milliseconds for that.",
	"pidfile": "The program wants `kill` to succeed on a container whose process is `true` and may have ended.",
}
