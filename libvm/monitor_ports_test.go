package libvm

import (
	"net/netip"
	"testing"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

func TestOnHost(t *testing.T) {
	for _, c := range []struct {
		network, address string
		ipv6Only         bool
		want             string
	}{
		{"tcp", "0.0.0.0:80", false, "tcp4 0.0.0.0:80"},
		{"tcp", "[::]:80", false, "tcp [::]:80"},
		{"tcp", "[::]:80", true, "tcp6 [::]:80"},
		{"tcp", "127.0.0.1:80", false, "tcp4 127.0.0.1:80"},
		{"udp", "[::1]:53", false, "udp [::1]:53"},
		{"udp", "10.0.2.15:53", false, "udp4 0.0.0.0:53"}, // the guest's only address
		{"tcp", "192.0.2.1:80", false, "tcp4 0.0.0.0:80"},
		{"tcp", "[fec0::5]:80", false, "tcp [::]:80"},
		{"tcp", "[::ffff:127.0.0.1]:80", false, "tcp4 127.0.0.1:80"},
		{"tcp", "0.0.0.0:0", false, ""},
		{"tcp", "[fe80::1%eth0]:80", false, ""},
		{"unix", "0.0.0.0:80", false, ""},
		{"tcp4", "0.0.0.0:80", false, ""},
		{"", "0.0.0.0:80", false, ""},
	} {
		l := guestproto.Listener{Network: c.network, Address: netip.MustParseAddrPort(c.address)}
		network, address, err := onHost(l, c.ipv6Only)
		got := network + " " + address
		if err != nil {
			got = ""
		}
		if got != c.want {
			t.Errorf("%s %s is %q on the host (%v), want %q", c.network, c.address, got, err, c.want)
		}
	}
	if _, _, err := onHost(guestproto.Listener{Network: "tcp"}, false); err == nil {
		t.Error("no address is one")
	}
}

func TestInGuest(t *testing.T) {
	for _, c := range []struct{ address, client, want string }{
		{"0.0.0.0:80", "192.0.2.1", "127.0.0.1:80"},
		{"[::]:80", "192.0.2.1", "127.0.0.1:80"},
		{"[::]:80", "::ffff:192.0.2.1", "127.0.0.1:80"},
		{"[::]:80", "2001:db8::1", "[::1]:80"},
		{"127.0.0.2:80", "127.0.0.1", "127.0.0.2:80"},
		{"10.0.2.15:80", "192.0.2.1", "10.0.2.15:80"},
	} {
		l := guestproto.Listener{Network: "tcp", Address: netip.MustParseAddrPort(c.address)}
		if got := inGuest(l, netip.MustParseAddr(c.client)).Address.String(); got != c.want {
			t.Errorf("%s goes to %s for %s, want %s", c.client, got, c.address, c.want)
		}
	}
}

func TestBothFamilies(t *testing.T) {
	at := func(network, address string) guestproto.Listener {
		return guestproto.Listener{Network: network, Address: netip.MustParseAddrPort(address)}
	}
	for _, c := range []struct {
		l, other guestproto.Listener
		want     bool
	}{
		{at("tcp", "[::]:80"), at("tcp", "0.0.0.0:80"), true},
		{at("tcp", "[::]:80"), at("udp", "0.0.0.0:80"), false},
		{at("tcp", "[::]:80"), at("tcp", "0.0.0.0:81"), false},
		{at("tcp", "[::]:80"), at("tcp", "127.0.0.1:80"), false},
		{at("tcp", "0.0.0.0:80"), at("tcp", "0.0.0.0:80"), false},
	} {
		if got := bothFamilies(c.l, c.other); got != c.want {
			t.Errorf("%v beside %v: %v", c.l, c.other, got)
		}
	}
}
