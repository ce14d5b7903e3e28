// Package hostnet is the host's side of a container's network: what the
// container's network namespace looks like (Look), the taps through which a VM
// takes over its links (Attach), and the queries of Docker's embedded resolver
// that have to be made from inside the namespace (ServeDNS).
//
// Every function works in the network namespace given as a file of type nsfs;
// nil is the caller's own. None needs /proc or /dev of its own accord, because
// the caller may have exchanged its root directory for a container's.
package hostnet

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// New makes a network namespace in which only lo exists, and is up. The
// namespace lives as long as the file, or whoever has joined it.
func New() (*os.File, error) {
	var ns *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		var err error
		ns, err = current()
		return err
	})
	if err != nil {
		return nil, named(err)
	}
	if err := Loopback(ns); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// Loopback brings lo up. In a fresh namespace lo is down.
func Loopback(ns *os.File) error {
	return with(ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("link lo: %w", err)
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring lo up: %w", err)
		}
		return nil
	})
}

// with calls f inside ns with a netlink socket of that namespace.
func with(ns *os.File, f func(*netlink.Handle) error) error {
	return named(in(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		defer h.Close()
		return f(h)
	}))
}

// in calls f on a thread that is in ns. f must not start goroutines that count
// on it.
func in(ns *os.File, f func() error) error {
	if ns == nil {
		return f()
	}
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join network namespace %s: %w", ns.Name(), err)
		}
		return f()
	})
}

// onThread calls f on a thread whose network namespace it may change. The
// thread goes back to where it was; one that cannot is not used again.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// In a user namespace of its own a process may have no say over the
		// network namespace it is in, and then cannot come back either.
		home, err := current()
		if err == nil {
			defer home.Close()
		}
		result <- f()
		// A goroutine that ends while locked takes its thread with it. That
		// is no way to end in every case: on the process's first thread it
		// would leave /proc/PID/ns/net pointing elsewhere.
		if home != nil && unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-result
}

// current opens the calling thread's network namespace, by way of a socket
// since there may be no /proc.
func current() (*os.File, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	fd, err := unix.IoctlRetInt(s, unix.SIOCGSKNS)
	if err != nil {
		return nil, fmt.Errorf("network namespace of a socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "network namespace"), nil
}
