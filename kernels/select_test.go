package kernels

import (
	"strings"
	"testing"
)

func TestSelect(t *testing.T) {
	netAdmin := Needs{Capabilities: []string{"CAP_CHOWN", "CAP_NET_ADMIN"}}
	sysctl := func(key, value string) Needs {
		return Needs{Sysctls: map[string]string{"kernel.shmmni": "9", key: value}}
	}
	tests := []struct {
		name       string
		needs      Needs
		annotation string
		flag       string
		want       Kernel
		reason     string
	}{
		{"nothing", Needs{}, "", "", Lean, "nothing in config.json needs net"},
		{"other capabilities", Needs{Capabilities: []string{"CAP_SYS_ADMIN", "CAP_NET_RAW"}}, "", "", Lean, "nothing in config.json needs net"},
		{"connections", sysctl("net.netfilter.nf_conntrack_max", "1"), "", "", Lean, "nothing in config.json needs net"},
		{"netfilter", sysctl("net.netfilter.nf_conntrack_events", "1"), "", "", Net, "sysctl net.netfilter.nf_conntrack_events is set"},
		{"netfilter with slashes", sysctl("net/bridge/bridge-nf-call-iptables", "1"), "", "", Net, "sysctl net/bridge/bridge-nf-call-iptables is set"},
		{"an interface's", sysctl("net.ipv6.conf.eth0/1.accept_ra_rtr_pref", "1"), "", "", Net, "sysctl net.ipv6.conf.eth0/1.accept_ra_rtr_pref is set"},
		{"another of an interface", sysctl("net.ipv6.conf.eth0.accept_ra", "1"), "", "", Lean, "nothing in config.json needs net"},
		{"bbr", sysctl("net.ipv4.tcp_congestion_control", "bbr"), "", "", Lean, "nothing in config.json needs net"},
		{"net admin", netAdmin, "", "", Net, "CAP_NET_ADMIN is among the capabilities"},
		{"to trace, without full", Needs{Capabilities: []string{"CAP_BPF", "CAP_NET_ADMIN"}}, "", "", Net, "CAP_NET_ADMIN is among the capabilities"},
		{"to trace", Needs{Capabilities: []string{"CAP_NET_ADMIN", "CAP_PERFMON"}, Full: true}, "", "", Full, "CAP_PERFMON is among the capabilities"},
		{"to mount", Needs{Capabilities: []string{"CAP_SYS_ADMIN"}, Full: true}, "", "", Full, "CAP_SYS_ADMIN is among the capabilities"},
		{"to dial", Needs{Capabilities: netAdmin.Capabilities, Devices: []string{"c10:200", "c108:0"}, Full: true}, "", "", Full, "/dev/ppp is among the devices"},
		{"to dial, without full", Needs{Capabilities: netAdmin.Capabilities, Devices: []string{"c108:0"}}, "", "", Net, "CAP_NET_ADMIN is among the capabilities"},
		{"labels", Needs{Sysctls: map[string]string{"net/mpls/platform_labels": "9", "net.bridge.x": "1"}, Full: true}, "", "", Full, "sysctl net/mpls/platform_labels is set"},
		{"no use of full", Needs{Capabilities: netAdmin.Capabilities, Full: true}, "", "", Net, "CAP_NET_ADMIN is among the capabilities"},
		{"annotation for full", Needs{}, "full", "", Full, "annotation boxlite.kernel"},
		{"annotation over capabilities", netAdmin, "lean", "", Lean, "annotation boxlite.kernel"},
		{"flag over capabilities", Needs{}, "", "net", Net, "flag --kernel"},
		{"flag over annotation", Needs{}, "net", "lean", Lean, "flag --kernel"},
		{"flag over a wrong annotation", Needs{}, "tiny", "lean", Lean, "flag --kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reason, err := Select(tt.needs, tt.annotation, tt.flag)
			if err != nil || got != tt.want || reason != tt.reason {
				t.Errorf("Select(%v, %q, %q) = %q, %q, %v, want %q, %q, nil",
					tt.needs, tt.annotation, tt.flag, got, reason, err, tt.want, tt.reason)
			}
		})
	}
}

func TestSelectUnknown(t *testing.T) {
	tests := []struct{ annotation, flag, from string }{
		{"host", "", "annotation boxlite.kernel"}, // a kernel for tests, not for containers
		{"", "Net", "flag --kernel"},
		{"net", "tiny", "flag --kernel"},
	}
	for _, tt := range tests {
		kernel, reason, err := Select(Needs{}, tt.annotation, tt.flag)
		if err == nil {
			t.Errorf("Select(Needs{}, %q, %q) = %q, %q, nil, want an error", tt.annotation, tt.flag, kernel, reason)
			continue
		}
		for _, part := range []string{tt.from, `"lean"`, `"net"`, `"full"`} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("Select(Needs{}, %q, %q): error %q does not name %s", tt.annotation, tt.flag, err, part)
			}
		}
	}
}

func TestHas(t *testing.T) {
	for i, k := range All {
		for j, other := range All {
			if got := k.Has(other); got != (i >= j) {
				t.Errorf("%s.Has(%s) = %t", k, other, got)
			}
		}
	}
}
