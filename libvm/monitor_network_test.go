package libvm

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/hostnet"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// foundLinks is what Look says of that many interfaces, eth0 with index 10 and so on.
func foundLinks(n int) *hostnet.Found {
	f := &hostnet.Found{}
	for i := range n {
		f.Interfaces = append(f.Interfaces, guestproto.Interface{Name: fmt.Sprintf("eth%d", i), MAC: fmt.Sprintf("02:00:00:00:00:%02x", i), MTU: 1400})
		f.Indices = append(f.Indices, 10+i)
	}
	return f
}

func TestTooManyInterfaces(t *testing.T) {
	if err := tooMany(foundLinks(8)); err != nil {
		t.Errorf("eight: %v", err)
	}
	const want = "interface eth8: one of 9, and a VM takes at most 8 network interfaces"
	if err := tooMany(foundLinks(9)); err == nil || err.Error() != want {
		t.Errorf("nine: %v, want %s", err, want)
	}
}

// The guest hears of nothing that belongs to an interface without a NIC.
func TestPresentInterfaces(t *testing.T) {
	found := foundLinks(3)
	found.DNSRelay = true
	for _, name := range []string{"eth0", "eth1", "eth2"} {
		found.Routes = append(found.Routes, guestproto.Route{Interface: name})
		found.Neighbours = append(found.Neighbours, guestproto.Neighbour{Interface: name})
	}
	var n network
	for i, iface := range found.Interfaces[:2] {
		n.nics = append(n.nics, &nic{index: found.Indices[i], iface: iface, NIC: vmm.NIC{MAC: iface.MAC, MTU: iface.MTU}, cut: i == 0})
	}
	got := n.present(found)
	want := &hostnet.Found{Indices: []int{11}, Network: guestproto.Network{
		Interfaces: found.Interfaces[1:2], Routes: found.Routes[1:2], Neighbours: found.Neighbours[1:2], DNSRelay: true,
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("present = %+v, want %+v", got, want)
	}
	if got := n.connected(); !reflect.DeepEqual(got, []int{11}) {
		t.Errorf("connected = %v, want eth1 alone", got)
	}
}

// A NIC serves its interface under any name and with any address.
func TestNICIs(t *testing.T) {
	c := &nic{index: 10, NIC: vmm.NIC{MAC: "02:00:00:00:00:01", MTU: 1400}}
	for name, tc := range map[string]struct {
		index int
		iface guestproto.Interface
		cut   bool
		want  bool
	}{
		"as it was":   {10, guestproto.Interface{Name: "eth0", MAC: c.MAC, MTU: 1400}, false, true},
		"renamed":     {10, guestproto.Interface{Name: "eth9", MAC: c.MAC, MTU: 1400, Addresses: []string{"10.0.0.1/8"}}, false, true},
		"smaller MTU": {10, guestproto.Interface{Name: "eth0", MAC: c.MAC, MTU: 1300}, false, true},
		"larger MTU":  {10, guestproto.Interface{Name: "eth0", MAC: c.MAC, MTU: 1500}, false, false},
		"another MAC": {10, guestproto.Interface{Name: "eth0", MAC: "02:00:00:00:00:02", MTU: 1400}, false, false},
		"made anew":   {11, guestproto.Interface{Name: "eth0", MAC: c.MAC, MTU: 1400}, false, false},
		"cut off":     {10, guestproto.Interface{Name: "eth0", MAC: c.MAC, MTU: 1400}, true, false},
	} {
		c.cut = tc.cut
		if got := c.is(tc.index, tc.iface); got != tc.want {
			t.Errorf("%s: is = %v, want %v", name, got, tc.want)
		}
	}
}

func TestCalmDown(t *testing.T) {
	changes := make(chan struct{}, 1)
	changes <- struct{}{}
	if !calmDown(changes) {
		t.Error("calmDown = false while the watch goes on")
	}
	close(changes)
	if calmDown(changes) {
		t.Error("calmDown = true after the watch's end")
	}
}
