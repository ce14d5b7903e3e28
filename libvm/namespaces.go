package libvm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/fault"
)

// cloneFlags are the namespace types of the runtime spec and the kernel's names
// for them.
var cloneFlags = map[specs.LinuxNamespaceType]uintptr{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

// networkNamespace returns the spec's network namespace, or ok=false for a
// container that asked for the host's.
func networkNamespace(spec *specs.Spec) (ns specs.LinuxNamespace, ok bool) {
	if spec.Linux == nil {
		return ns, false
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			return ns, true
		}
	}
	return ns, false
}

// ownNetwork is the network namespace of whoever looks at it.
const ownNetwork = "/proc/self/ns/net"

// leaveHostNetwork removes a network namespace from the spec if its path is that of
// the caller's own namespace. With such a path Docker asks for the host's network;
// other callers name no network namespace for that. The container must not get the
// host's interfaces, only reach what they reach.
//
// The path ownNetwork itself is the exception. It asks for the interfaces of a
// namespace that somebody has made to call boxlite in.
func leaveHostNetwork(spec *specs.Spec) {
	ns, ok := networkNamespace(spec)
	if !ok || ns.Path == "" || ns.Path == ownNetwork {
		return
	}
	named, err := os.Stat(ns.Path)
	own, ownErr := os.Stat(ownNetwork)
	if err != nil || ownErr != nil || !os.SameFile(named, own) {
		return // checkNamespaces says what is wrong with it
	}
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n == ns })
}

// checkNamespaces opens every namespace that the spec names by path and refuses
// one of another type than it says.
func checkNamespaces(spec *specs.Spec) error {
	if spec.Linux == nil {
		return nil
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Path == "" {
			continue
		}
		f, err := openNamespace(ns)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	return nil
}

// openNamespace opens a namespace given by path and checks its type.
func openNamespace(ns specs.LinuxNamespace) (*os.File, error) {
	f, err := os.Open(ns.Path)
	if err != nil {
		return nil, fmt.Errorf("%s namespace: %w", ns.Type, err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err == nil && uintptr(kind) != cloneFlags[ns.Type] {
		err = errors.New("a namespace of another type")
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s namespace %s: %w", ns.Type, ns.Path, err)
	}
	return f, nil
}

// sharedMounts opens the mount namespace that the monitor shall end up in, or
// returns nil for one of its own: the caller's if the spec has none, as for
// every other type.
func sharedMounts(spec *specs.Spec) (*os.File, error) {
	ns := specs.LinuxNamespace{Type: specs.MountNamespace, Path: "/proc/self/ns/mnt"}
	if spec.Linux != nil {
		for _, given := range spec.Linux.Namespaces {
			if given.Type == specs.MountNamespace {
				ns = given
			}
		}
	}
	if ns.Path == "" {
		return nil, nil
	}
	return openNamespace(ns)
}

// hostNamespaces sorts the spec's namespaces into those that the monitor gets
// new and those it joins. It always begins in a mount namespace of its own, see
// sharedMounts. A time namespace is made in the guest only, and so is a user
// namespace where the network is another's: the monitor has to make taps in it.
func hostNamespaces(spec *specs.Spec) (fresh uintptr, join []specs.LinuxNamespace) {
	fresh = unix.CLONE_NEWNS // always: the share is mounted in it
	if spec.Linux == nil {
		return fresh, nil
	}
	for _, ns := range spec.Linux.Namespaces {
		switch ns.Type {
		case specs.TimeNamespace, specs.MountNamespace:
		case specs.UserNamespace:
			if ns.Path == "" && !joinsNetwork(spec) {
				fresh |= cloneFlags[ns.Type]
			}
		default:
			if ns.Path == "" {
				fresh |= cloneFlags[ns.Type]
			} else {
				join = append(join, ns)
			}
		}
	}
	return fresh, join
}

// becomeRoot has a process started as root of a new user namespace, with the
// caller's user and group for its only ids. It returns the clone flag.
func becomeRoot(attr *syscall.SysProcAttr) uintptr {
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	return unix.CLONE_NEWUSER
}

func joinsNetwork(spec *specs.Spec) bool {
	ns, ok := networkNamespace(spec)
	return ok && ns.Path != ""
}

// mapIdentity maps all ids to themselves in a new user namespace. The files that
// virtiofsd serves keep their ids, as the guest does the container's mapping. The
// monitor and its children lose their power over the host's kernel.
func mapIdentity(attr *syscall.SysProcAttr) error {
	uids, err := user.CurrentProcessUIDMap()
	if err != nil {
		return err
	}
	gids, err := user.CurrentProcessGIDMap()
	if err != nil {
		return err
	}
	attr.UidMappings, attr.GidMappings = toThemselves(uids), toThemselves(gids)
	attr.GidMappingsEnableSetgroups = true
	return nil
}

func toThemselves(ids []user.IDMap) (mappings []syscall.SysProcIDMap) {
	for _, m := range ids {
		mappings = append(mappings, syscall.SysProcIDMap{ContainerID: int(m.ID), HostID: int(m.ID), Size: int(m.Count)})
	}
	return mappings
}

// startIn starts cmd in fresh namespaces (clone flags) and in those to join. The
// thread that joins them ends afterwards; cmd.Wait may be called from any other.
func startIn(cmd *exec.Cmd, fresh uintptr, join []specs.LinuxNamespace) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Cloneflags = fresh
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: a thread in other namespaces is not given back
		done <- func() error {
			for _, ns := range join {
				if err := joinNamespace(ns); err != nil {
					return err
				}
			}
			if err := cmd.Start(); err != nil {
				return fault.Wrap("start boxlite again", err)
			}
			return nil
		}()
	}()
	return <-done
}

// joinNamespace moves the calling thread (for pid: its children to come) into a
// namespace.
func joinNamespace(ns specs.LinuxNamespace) error {
	f, err := openNamespace(ns)
	if err != nil {
		return err
	}
	defer f.Close()
	if isOwn(ns.Type, f) {
		return nil // the kernel asks for a right to it even then, which a user namespace may not have
	}
	if err := unix.Setns(int(f.Fd()), int(cloneFlags[ns.Type])); err != nil {
		return fmt.Errorf("join %s namespace %s: %w", ns.Type, ns.Path, err)
	}
	return nil
}

// isOwn says whether the calling thread is in the namespace behind f.
func isOwn(kind specs.LinuxNamespaceType, f *os.File) bool {
	there, err := f.Stat()
	if err != nil {
		return false
	}
	here, err := os.Stat("/proc/thread-self/ns/" + namespaceFiles[kind])
	return err == nil && os.SameFile(here, there)
}

// namespaceFiles are the names in /proc/PID/ns.
var namespaceFiles = map[specs.LinuxNamespaceType]string{
	specs.PIDNamespace:     "pid",
	specs.NetworkNamespace: "net",
	specs.IPCNamespace:     "ipc",
	specs.UTSNamespace:     "uts",
	specs.CgroupNamespace:  "cgroup",
}

// namespacesOf are the namespaces a container's monitor is in, to be joined by
// an exec's process. The mount namespace is not among them: see enterMounts.
func namespacesOf(pid int) []specs.LinuxNamespace {
	var join []specs.LinuxNamespace
	for kind, name := range namespaceFiles {
		join = append(join, specs.LinuxNamespace{Type: kind, Path: fmt.Sprintf("/proc/%d/ns/%s", pid, name)})
	}
	return join
}

// enterMounts moves the process's main thread, which must be the calling one,
// into the mount namespace behind fd. That thread is the one that /proc/PID/ns
// speaks of; the Go runtime's others stay where they are.
func enterMounts(ns *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("join mount namespace: %w", err)
	}
	return nil
}
