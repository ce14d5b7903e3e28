// Package libvm keeps containers, each in a virtual machine of its own. It has both
// sides of the host:
//
//   - Container, which a command of boxlite works on;
//   - the monitor, the process that owns a container's VM.
//
// The monitor's code is in monitor*.go, and control.go is the protocol between the
// two. The other files are the commands' side.
//
// # Who calls whom
//
//	commands (package main)
//	   │
//	   ▼
//	Runtime, Container ──control.go──► monitor ──guestproto──► guestinit, in the guest
//	   │                                 │
//	   ▼                                 ▼
//	plan   hostcgroup   turn   self     vmm   rootfs   hostnet   hostsocket   hostwatch   latemounts   controlport   lockdown
//	                                     │
//	                                     ▼
//	                                    qmp   template   parts   accel
//
// A member of a pod has no monitor. The process that stands for it (member.go) asks
// that of the pod's sandbox, and so do the commands (monitor_member.go). The monitor
// knows each container in its VM as a tenant.
//
// Arrows point down; imports_test.go of the main package holds them. Package plan is
// pure. fault, guesttext and fdpass are leaves that all may use.
//
// # What is on disk, and who removes it
//
// A container has a directory below Runtime.Root, made by Create and removed by
// Delete, DeleteRemains or a Create that fails (Container.remove):
//
//	state.json    what was decided and how far its life has come (State)
//	birth.json    the same while Create is under way; then it is gone
//	lock          held by each command that changes something, and by Create
//	monitor.sock  where the monitor answers (control.go)
//	console.log   what the guest's kernel and guestinit said, 256 KiB at most
//	monitor.log   the monitor's log, where the caller named no other
//	share/        an empty directory: virtiofsd's tree is mounted there for the monitor alone
//	root/         likewise for QEMU's root
//
// Beside that there are:
//
//   - the container's cgroup, which goes with the directory;
//   - of a pod's member, its mounts in the share that its sandbox's virtiofsd serves,
//     which go with the directory too;
//   - what hostnet has put into a network namespace that outlives the container,
//     which goes with the directory too;
//   - templates and standby VMs below Runtime.TemplateDir, which outlive all
//     containers (template.Store, Factory.Standby);
//   - Runtime.TurnFile, which stays.
package libvm
