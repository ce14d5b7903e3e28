package hostnet

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapPrefix begins the names of our taps; Look knows them by it.
const tapPrefix = "boxtap"

// OpenTun opens the file that becomes a tap. It belongs to the network namespace
// of the caller. The error says what may be missing.
func OpenTun() (*os.File, error) {
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, named(fmt.Errorf("%w: %s", err, tunAdvice(err)))
	}
	return tun, nil
}

// tunAdvice says what to do about a /dev/net/tun that could not be opened.
func tunAdvice(err error) string {
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "this machine's kernel has no tun driver: modprobe tun"
	case errors.Is(err, unix.ENOENT):
		return "this machine has none: modprobe tun, or give it to the container that boxlite runs in (docker run --device /dev/net/tun)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "this user may not: chmod 666 /dev/net/tun, or give it to the container that boxlite runs in (docker run --device /dev/net/tun)"
	default:
		return "boxlite check says what this machine lacks"
	}
}

// makeTap makes a tap of a file of OpenTun: one queue, gone with its last descriptor,
// frames with virtio-net headers. The file stays the caller's; nil has one opened.
func makeTap(tun *os.File) (*Tap, error) {
	if tun == nil {
		var err error
		if tun, err = OpenTun(); err != nil {
			return nil, err
		}
		defer tun.Close()
	}
	req, err := unix.NewIfreq(tapPrefix + "%d")
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, req); err != nil {
		return nil, fmt.Errorf("make a tap: TUNSETIFF: %w", err)
	}
	// Another descriptor: what has begun to poll the file when it was no tap yet
	// never hears of it again. So Go's poller wakes up for no frame of a tap that
	// only QEMU reads.
	fd, err := unix.FcntlInt(tun.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a tap: %w", err)
	}
	name := req.Name()
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("make a tap: %w", err), unix.Close(fd))
	}
	return &Tap{Name: name, File: os.NewFile(uintptr(fd), "tap "+name)}, nil
}

// Down has nothing go through the tap any more, which stays for whoever has its file.
// The namespace loses its routes. The tap may have gone.
func (t *Tap) Down(ns *os.File) error {
	err := with(ns, func(h *netlink.Handle) error {
		tap, err := h.LinkByIndex(t.index)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return h.LinkSetDown(tap)
	})
	if err != nil {
		return fmt.Errorf("bring tap %s down: %w", t.Name, err)
	}
	return nil
}

// Remove takes the tap away, whoever has its file. Nobody who does may use it any
// more. The tap may have gone.
func (t *Tap) Remove(ns *os.File) error {
	err := with(ns, t.remove)
	if err != nil {
		return fmt.Errorf("remove tap %s: %w", t.Name, err)
	}
	return nil
}

func (t *Tap) remove(h *netlink.Handle) error {
	tap, err := h.LinkByIndex(t.index)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return h.LinkDel(tap)
}

// The ephemeral ports of a namespace whose stack shares an address with the
// guest. Guests keep the kernel's default of 32768 to 60999; portMask picks
// the upper range out of a port number.
const (
	hostPorts = "61440 65535"
	portMask  = 0xf000
)

// OpenPortRange opens the ephemeral ports of the caller's network namespace, see
// Options.PortRange.
func OpenPortRange() (*os.File, error) {
	return os.OpenFile("/proc/sys/net/ipv4/ip_local_port_range", os.O_WRONLY, 0) // also of IPv6
}

// setPortRange gives a namespace its own ephemeral ports. A nil file is that of the
// calling thread's namespace.
func setPortRange(file *os.File) (err error) {
	if file == nil {
		if file, err = OpenPortRange(); err != nil {
			return fmt.Errorf("set net.ipv4.ip_local_port_range: %w", err)
		}
		defer file.Close()
	}
	if _, err := file.WriteAt([]byte(hostPorts), 0); err != nil {
		return fmt.Errorf("set net.ipv4.ip_local_port_range to %s: %w", strings.ReplaceAll(hostPorts, " ", "-"), err)
	}
	return nil
}
