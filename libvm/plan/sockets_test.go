package plan

import (
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestProbeSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40)) // no address holds the path
	for _, c := range []struct {
		network string
		want    SocketKind
	}{{"unix", SocketStream}, {"unixgram", SocketDatagram}, {"unixpacket", SocketSeqpacket}} {
		t.Run(c.network, func(t *testing.T) {
			t.Chdir(t.TempDir())
			addr := &net.UnixAddr{Name: "socket", Net: c.network}
			var closer interface{ Close() error }
			var err error
			if c.network == "unixgram" {
				closer, err = net.ListenUnixgram(c.network, addr)
			} else {
				var l *net.UnixListener
				l, err = net.ListenUnix(c.network, addr)
				l.SetUnlinkOnClose(false)
				closer = l
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := probeSocket("socket"); got != c.want || err != nil {
				t.Errorf("probeSocket = %v, %v, want %v", got, err, c.want)
			}
			_ = closer.Close()
			if got, err := probeSocket("socket"); got != SocketUnknown || err != nil {
				t.Errorf("probeSocket of one that nobody has open = %v, %v, want %v", got, err, SocketUnknown)
			}
		})
	}
	if _, err := probeSocket(filepath.Join(dir, "missing")); err == nil {
		t.Error("probeSocket of nothing: no error")
	}
}

func TestHostSockets(t *testing.T) {
	mappings := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	bind := specs.Mount{Destination: "/run/s", Type: "bind", Source: "/host/s", Options: []string{"rbind", "ro"}}
	for name, c := range map[string]struct {
		kind   SocketKind
		edit   func(*specs.Spec)
		over   Overrides
		want   HostSockets
		source string // of the guest's mount
		warned bool
	}{
		"stream":    {kind: SocketStream, want: HostSockets{Sockets: []HostSocket{{Source: "/real/s", Destination: "/run/s"}}}, source: "/run/boxlite/sockets/0"},
		"datagram":  {kind: SocketDatagram, want: HostSockets{Sockets: []HostSocket{{Source: "/real/s", Destination: "/run/s", Datagram: true}}}, source: "/run/boxlite/sockets/0"},
		"unknown":   {kind: SocketUnknown, want: HostSockets{Sockets: []HostSocket{{Source: "/real/s", Destination: "/run/s"}}}, source: "/run/boxlite/sockets/0", warned: true},
		"seqpacket": {kind: SocketSeqpacket, source: "/run/boxlite/share/mounts/0", warned: true},
		"flag":      {kind: SocketStream, over: Overrides{NoHostSockets: true}, want: HostSockets{Off: true}, source: "/run/boxlite/share/mounts/0"},
		"annotation": {
			kind: SocketStream, edit: func(s *specs.Spec) { s.Annotations = map[string]string{AnnotationHostSockets: "off"} },
			want: HostSockets{Off: true}, source: "/run/boxlite/share/mounts/0",
		},
		"user": {
			kind: SocketStream, edit: func(s *specs.Spec) { s.Process.User = specs.User{UID: 7, GID: 8} },
			want:   HostSockets{Sockets: []HostSocket{{Source: "/real/s", Destination: "/run/s"}}, User: &SocketUser{7, 8}},
			source: "/run/boxlite/sockets/0",
		},
		"user namespace": {
			kind: SocketStream, edit: func(s *specs.Spec) {
				s.Process.User = specs.User{UID: 7}
				s.Linux.UIDMappings, s.Linux.GIDMappings = mappings, mappings
			},
			want: HostSockets{
				Sockets: []HostSocket{{Source: "/real/s", Destination: "/run/s"}}, User: &SocketUser{100007, 100000}, UIDs: mappings, GIDs: mappings,
			},
			source: "/run/boxlite/sockets/0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := minimal()
			spec.Mounts = []specs.Mount{bind}
			if c.edit != nil {
				c.edit(spec)
			}
			host := &HostFacts{CPUs: 2, Sources: map[string]Source{"/host/s": {Kind: SourceSocket, Path: "/real/s", Socket: c.kind}}}
			p, err := Rewrite(spec, "/bundle/rootfs", host, c.over)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(p.Sockets, c.want) {
				t.Errorf("sockets %+v, want %+v", p.Sockets, c.want)
			}
			if got := p.Guest.Mounts[0].Source; got != c.source {
				t.Errorf("source in the guest %s, want %s", got, c.source)
			}
			if warned := len(p.Warnings) > 0; warned != c.warned {
				t.Errorf("warnings %q", p.Warnings)
			}
		})
	}
}
