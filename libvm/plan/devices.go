package plan

import (
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/kernels"
)

// guestDevices are the nodes that the guest's kernel can stand behind, with the
// numbers that Linux fixes for them (Documentation/admin-guide/devices.txt).
var guestDevices = func() map[string]string {
	devices := map[string]string{
		"/dev/null": "c1:3", "/dev/zero": "c1:5", "/dev/full": "c1:7",
		"/dev/random": "c1:8", "/dev/urandom": "c1:9", "/dev/kmsg": "c1:11",
		"/dev/tty": "c5:0", "/dev/console": "c5:1", "/dev/ptmx": "c5:2",
		"/dev/net/tun": "c10:200", "/dev/fuse": "c10:229",
		"/dev/mapper/control": "c10:236", "/dev/loop-control": "c10:237",
	}
	for i := range guestproto.LoopDevices {
		devices[fmt.Sprintf("/dev/loop%d", i)] = fmt.Sprintf("b7:%d", i)
	}
	return devices
}()

// devicesOf are the nodes that a kernel of ours can stand behind.
func devicesOf(kernel kernels.Kernel) map[string]string {
	if kernel != kernels.Full {
		return guestDevices
	}
	devices := maps.Clone(guestDevices)
	maps.Copy(devices, kernels.DevicesOfFull)
	return devices
}

// devices keeps the nodes of linux.devices that the guest has, and those that
// stand for nothing on the host either (a plain mknod is then all that is asked
// for). What is left is a device of the host's: a node with its number would be
// some other device in the guest. A privileged container gets a node of all
// that the guest has, as it gets one of all the host has from runc.
func (p *Plan) devices(host *HostFacts) {
	known := devicesOf(p.Shape.Kernel)
	numbers := slices.Collect(maps.Values(known))
	keep := p.Guest.Linux.Devices[:0]
	var left []string
	for _, d := range p.Guest.Linux.Devices {
		key := deviceKey(d)
		if d.Type == "p" || slices.Contains(numbers, key) || !host.Devices[key] {
			keep = append(keep, d)
		} else {
			left = append(left, d.Path)
		}
	}
	if p.Shape.Privileged {
		keep = addDevices(keep, known)
	}
	p.Guest.Linux.Devices = keep
	if len(left) > 0 {
		p.leaveDevices(left)
	}
}

// addDevices appends the nodes of the guest's devices whose paths are not
// taken. guestinit makes the standard ones itself, as runc does.
func addDevices(devices []specs.LinuxDevice, known map[string]string) []specs.LinuxDevice {
	for _, path := range slices.Sorted(maps.Keys(known)) {
		if slices.ContainsFunc(devices, func(d specs.LinuxDevice) bool { return d.Path == path }) {
			continue
		}
		d := specs.LinuxDevice{Path: path}
		if _, err := fmt.Sscanf(known[path], "%1s%d:%d", &d.Type, &d.Major, &d.Minor); err != nil {
			panic(err) // the tables above
		}
		devices = append(devices, d)
	}
	return devices
}

// charType maps "u", an unbuffered character device, to "c", as mknod(1) does.
func charType(t string) string {
	if t == "u" {
		return "c"
	}
	return t
}

func deviceKey(d specs.LinuxDevice) string {
	return fmt.Sprintf("%s%d:%d", charType(d.Type), d.Major, d.Minor)
}
