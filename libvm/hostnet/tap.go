package hostnet

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// tapPrefix begins the names of our taps; Scan knows them by it.
const tapPrefix = "boxtap"

// openTap makes a tap in the calling thread's network namespace: one queue,
// gone with its last descriptor, frames with virtio-net headers.
func openTap(devDir *os.File) (*Tap, error) {
	dir, path := unix.AT_FDCWD, "/dev/net/tun"
	if devDir != nil {
		dir, path = int(devDir.Fd()), "net/tun"
	}
	fd, err := unix.Openat(dir, path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun (is the tun driver loaded, and may this user use it?): %w", err)
	}
	req, err := unix.NewIfreq(tapPrefix + "%d")
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make a tap: TUNSETIFF: %w", err)
	}
	name := req.Name()
	return &Tap{Name: name, File: os.NewFile(uintptr(fd), "tap "+name)}, nil
}

// The ephemeral ports of a namespace whose stack shares an address with the
// guest. Guests keep the kernel's default of 32768 to 60999; portMask picks
// the upper range out of a port number.
const (
	hostPorts = "61440 65535"
	portMask  = 0xf000
)

// setPortRange gives the calling thread's namespace its own ephemeral ports.
func setPortRange(procDir *os.File) error {
	const path = "sys/net/ipv4/ip_local_port_range" // also of IPv6
	dir, name := unix.AT_FDCWD, "/proc/"+path
	if procDir != nil {
		dir, name = int(procDir.Fd()), path
	}
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set net.ipv4.ip_local_port_range: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(hostPorts)); err != nil {
		return fmt.Errorf("set net.ipv4.ip_local_port_range to %s: %w", strings.ReplaceAll(hostPorts, " ", "-"), err)
	}
	return nil
}
