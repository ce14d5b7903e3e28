package hostnet

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Watch hears of changes of a network namespace: of links, addresses and routes.
type Watch struct {
	socket *os.File
}

// OpenWatch opens one of the caller's namespace. It hears of what changes from then
// on.
func OpenWatch() (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, named(fmt.Errorf("netlink socket: %w", err))
	}
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, named(errors.Join(fmt.Errorf("subscribe to changes of the network: %w", err), unix.Close(fd)))
	}
	return &Watch{os.NewFile(uintptr(fd), "netlink")}, nil
}

// Changes returns a channel that holds one value when something has changed since
// the last one was received. What has changed is not said: the kernel drops messages
// that nobody has room for, so whoever hears looks for himself. The channel is closed
// when the watch is.
func (w *Watch) Changes() <-chan struct{} {
	changes := make(chan struct{}, 1)
	go func() {
		defer close(changes)
		message := make([]byte, 4<<10) // the rest of a longer one is thrown away
		for {
			// ENOBUFS says that messages were dropped.
			if _, err := w.socket.Read(message); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	}()
	return changes
}

// Close ends the watch.
func (w *Watch) Close() error { return w.socket.Close() }

// Update brings what Attach has made for the link called name up to date: with the
// link's addresses, and with a resolver that has come since, if opts.HostResolver. Other
// options do not count. It can be repeated. A link that another VM has by now is left
// alone.
func (t *Tap) Update(ns *os.File, name string, opts Options) error {
	err := with(ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		tap, err := holder(h, link)
		if err != nil {
			return err
		}
		if tap == nil || tap.Attrs().Index != t.index {
			return nil
		}
		if opts.HostResolver && !t.resolver {
			if err := setPortRange(opts.PortRange); err != nil {
				return err
			}
			for _, f := range filters(tap, true) {
				if f.priority == priorityAll {
					continue // it is there, and frames go on through it meanwhile
				}
				if err := addFilter(h, link, f); err != nil {
					return err
				}
			}
			t.resolver = true
		}
		return updateLocal(h, link, tap)
	})
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

// Prune takes the rules away that lead to the guest from addresses which none of the
// links called names has any more.
func Prune(ns *os.File, names []string) error {
	return with(ns, func(h *netlink.Handle) error {
		var addresses []netlink.Addr
		inUse := false
		for _, name := range names {
			link, err := h.LinkByName(name)
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				continue
			}
			if err != nil {
				return err
			}
			more, err := h.AddrList(link, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			addresses, inUse = append(addresses, more...), true
		}
		return dropRules(h, func(ip net.IP) bool { return !among(addresses, ip) }, inUse)
	})
}
