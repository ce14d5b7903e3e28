package main

import (
	"encoding/binary"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// TestNetwork gives a guest two NICs, swaps their names, changes what the host asks
// for and leaves what the container has made, and takes one away.
func TestNetwork(t *testing.T) {
	const first, second = "52:54:00:00:00:01", "52:54:00:00:00:02"
	v := bootVM(t,
		"-netdev", "hubport,id=n0,hubid=0", "-device", "virtio-net-pci,netdev=n0,mac="+first,
		"-netdev", "hubport,id=n1,hubid=0", "-device", "virtio-net-pci,netdev=n1,mac="+second)
	v.ok(guestproto.OpCreate, guestproto.CreateRequest{ID: "c1", Spec: dockerSpec(shell("sleep 1000"))}, nil)
	v.serveDNS()
	v.ok(guestproto.OpStart, guestproto.StartRequest{Network: &guestproto.Network{
		Interfaces: []guestproto.Interface{
			{Name: "eth1", MAC: first, MTU: 1400, Addresses: []string{"10.1.0.2/24", "fd00::2/64"}},
			{Name: "eth0", MAC: second, Addresses: []string{"10.2.0.2/16"}},
		},
		Routes: []guestproto.Route{
			{Interface: "eth0", Dst: "10.2.0.0/16", Source: "10.2.0.2", Family: 4, Scope: 253, Protocol: 2},
			{Interface: "eth1", Dst: "192.0.2.1/32", Family: 4, Scope: 253},
			{Interface: "eth1", Gateway: "192.0.2.1", Family: 4, Protocol: 3},
			{Interface: "eth0", Dst: "198.51.100.0/24", Gateway: "203.0.113.1", Family: 4, Flags: 4 | 16, Metric: 7},
			{Interface: "eth1", Gateway: "fd00::1", Family: 6},
			{Interface: "eth1", Dst: "127.254.254.9/32", Source: "127.0.0.1", Family: 4, Scope: 253, Loopback: true},
		},
		Neighbours: []guestproto.Neighbour{{Interface: "eth1", IP: "10.1.0.9", MAC: "02:00:00:00:00:09"}},
		DNSRelay:   true,
	}}, nil)
	look(t, v, []probe{
		{"ip -4 addr show eth1", "mtu 1400"},
		{"ip addr show eth1", "inet6 fd00::2/64 scope global"},
		{"ip addr show eth1 | grep fd00 | grep -c tentative", "0\n"},
		{"ip link show eth1", first},
		{"ip -4 addr show eth0", "inet 10.2.0.2/16"},
		{"ip -6 addr show eth0 | wc -l", "0\n"},
		{"ip route", "default via 192.0.2.1 dev eth1"},
		{"ip route", "198.51.100.0/24 via 203.0.113.1 dev eth0  metric 7 onlink"},
		{"ip -6 route", "default via fd00::1 dev eth1"},
		{"ip route show table local", "127.254.254.9 dev eth1"},
		{"ip route get 127.254.254.9", "src 127.0.0.1"},
		{"cat /proc/sys/net/ipv4/conf/eth1/route_localnet /proc/sys/net/ipv4/conf/eth0/route_localnet /proc/sys/net/ipv4/conf/all/route_localnet", "1\n0\n0\n"},
		{"ip neigh", "10.1.0.9 dev eth1 lladdr 02:00:00:00:00:09"},
		{"ip addr show lo", "inet6 ::1/128"},
		{"nslookup -type=a some.name 127.0.0.11", "192.0.2.77"},
	}, nil)
	v.ok(guestproto.OpNetwork, guestproto.Network{
		Interfaces: []guestproto.Interface{
			{Name: "eth0", MAC: first, Addresses: []string{"10.1.0.3/24"}},
			{Name: "eth1", MAC: second, Addresses: []string{"10.2.0.2/16"}},
		},
	}, nil)
	look(t, v, []probe{
		{"ip link show eth0", first},
		{"ip -4 addr show eth0", "inet 10.1.0.3/24"},
		{"ip -4 addr show | grep -c 'inet 10.1.0.2'", "0\n"},
		{"ip route | grep -c via", "0\n"},
		{"ip route show table local | grep -c 127.254", "0\n"},
	}, nil)
	route := guestproto.Route{Interface: "eth1", Dst: "198.51.100.0/24", Gateway: "10.2.0.9", Family: 4, Protocol: 3}
	neighbour := guestproto.Neighbour{Interface: "eth1", IP: "10.2.0.8", MAC: "02:00:00:00:00:08"}
	v.ok(guestproto.OpNetwork, guestproto.Network{
		Interfaces: []guestproto.Interface{
			{Name: "eth0", MAC: first, Addresses: []string{"10.1.0.3/24"}},
			{Name: "eth1", MAC: second, Addresses: []string{"10.2.0.2/16"}},
		},
		Routes: []guestproto.Route{route}, Neighbours: []guestproto.Neighbour{neighbour},
	}, nil)
	look(t, v, []probe{
		{"ip route", "198.51.100.0/24 via 10.2.0.9 dev eth1"},
		{"ip neigh", "10.2.0.8 dev eth1 lladdr 02:00:00:00:00:08"},
	}, nil)
	look(t, v, []probe{
		{"ip addr add 10.5.0.77/24 dev eth0 && ip route add 192.0.2.0/24 via 10.5.0.9 && ip addr del 10.2.0.2/16 dev eth1 && echo changed", "changed"},
	}, func(p *specs.Process) {
		admin := []string{"CAP_NET_ADMIN"}
		p.Capabilities = &specs.LinuxCapabilities{Bounding: admin, Effective: admin, Permitted: admin}
	})
	v.ok(guestproto.OpNetwork, guestproto.Network{
		Interfaces: []guestproto.Interface{
			{Name: "eth0", MAC: first, Addresses: []string{"10.1.0.4/24"}},
			{Name: "eth1", MAC: second, Addresses: []string{"10.2.0.2/16"}},
		},
	}, nil)
	look(t, v, []probe{
		{"ip -4 addr show eth0", "inet 10.1.0.4/24"},
		{"ip -4 addr show eth0", "inet 10.5.0.77/24"}, // the container's own
		{"ip -4 addr show eth0 | grep -c 10.1.0.3", "0\n"},
		{"ip route", "192.0.2.0/24 via 10.5.0.9 dev eth0"}, // likewise
		{"ip route | grep -c 198.51.100", "0\n"},
		{"ip neigh | grep -c 10.2.0.8", "0\n"},
		{"ip -4 addr show eth1 | grep -c inet", "0\n"}, // which nothing has changed on the host
	}, nil)
	v.ok(guestproto.OpNetwork, guestproto.Network{Interfaces: []guestproto.Interface{{Name: "eth1", MAC: first}}}, nil)
	look(t, v, []probe{
		{"ip link show eth1", first},
		{"ip -4 addr show | grep -c 'inet 10.1.0.4'", "0\n"},
		{"ip link | grep -c " + second, "0\n"},
	}, nil)
}

// serveDNS answers every query with 192.0.2.77.
func (v *vm) serveDNS() {
	v.t.Helper()
	stream, err := v.session.OpenStream()
	if err != nil {
		v.t.Fatal(err)
	}
	if err := guestproto.Call(stream, guestproto.OpDNS, nil, nil); err != nil {
		v.t.Fatal(err)
	}
	go func() {
		for {
			m, err := readDNS(stream)
			if err != nil {
				return
			}
			m[2], m[3], m[7] = 0x81, 0x80, 1
			m = append(m, 0xc0, dnsHeader, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77)
			_, _ = stream.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
		}
	}()
}
