package main

import "os"

// groundwork is what every container needs and hardly any spec shapes. guestinit
// makes it before there is a container. So a template holds it, and each copy of
// the template has it from the start.
type groundwork struct {
	cgroup *cgroup
	// filter is the cgroup's device filter.
	filter *deviceFilter
	oom    *oomWatch
	// init waits in the cgroup and in namespaces of its own.
	init *process
	// null is /dev/null.
	null *os.File
}

// What an init that is forked ahead has room for: a long command line, and as
// many procs as nearly every spec mounts.
const (
	aheadMemory = 1 << 20
	aheadProcs  = 1
)

// layGroundwork makes the groundwork, with the device filter of nearly every
// container.
func layGroundwork(children *reaper, filter []byte) (*groundwork, error) {
	group, err := newCgroup(containerCgroup)
	if err != nil {
		return nil, err
	}
	// config.json may name a kernel that lacks something, for a container that does without.
	attached, err := attachDeviceFilter(group.fd, filter)
	if err != nil {
		logf("%v", err)
	}
	oom, err := watchOOM(group)
	if err != nil {
		logf("%v", err)
	}
	init, err := forkWaiting(children, group, initNamespaces, aheadMemory, aheadProcs)
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &groundwork{cgroup: group, filter: attached, oom: oom, init: init, null: null}, nil
}
