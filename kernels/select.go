// Package kernels decides which of the guest kernels a container boots. It owns that choice and, beside the Go code, the
// configs and the script they are built with; finding the built files and booting them is left to others.
package kernels

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Kernel names a guest kernel by the name build.sh builds it under.
type Kernel string

const (
	Lean Kernel = "lean" // what ordinary programs use, and a user namespace of their own
	Net  Kernel = "net"  // Lean plus what takes CAP_NET_ADMIN: routers, firewalls, traffic control
)

// Annotation is the key in config.json by which a container asks for a kernel.
const Annotation = "boxlite.kernel"

// Needs are what of a config.json only one of the kernels has. The zero value needs neither.
type Needs struct {
	Capabilities []string          // names as config.json spells them
	Sysctls      map[string]string // linux.sysctl
}

// Select picks the kernel for a container with these needs. A non-empty flag wins over a non-empty annotation, and both
// over the needs. The reason is a phrase for the log. A name that is neither Lean nor Net is an error.
func Select(needs Needs, annotation, flag string) (kernel Kernel, reason string, err error) {
	switch {
	case flag != "":
		kernel, reason = Kernel(flag), "flag --kernel"
	case annotation != "":
		kernel, reason = Kernel(annotation), "annotation "+Annotation
	default:
		kernel, reason = needs.kernel()
	}
	if kernel != Lean && kernel != Net {
		return "", "", fmt.Errorf("%s: unknown kernel %q, valid are %q and %q", reason, string(kernel), Lean, Net)
	}
	return kernel, reason, nil
}

func (n Needs) kernel() (Kernel, string) {
	if slices.Contains(n.Capabilities, "CAP_NET_ADMIN") {
		return Net, "CAP_NET_ADMIN is among the capabilities"
	}
	for _, key := range slices.Sorted(maps.Keys(n.Sysctls)) {
		if sysctlOfNet(key) {
			return Net, "sysctl " + key + " is set"
		}
	}
	return Lean, "nothing in config.json needs " + string(Net)
}

// netSysctls begin or are the names of the kernel parameters that Net has and Lean lacks, where a dot parts them.
var netSysctls = []string{
	"net.bridge.", "net.netfilter.nf_conntrack_events", "net.netfilter.nf_conntrack_sctp_", "net.netfilter.nf_flowtable_",
	"net.netfilter.nf_hooks_lwtunnel", "net.ipv4.vs.", "net.sctp.", "net.vrf.",
	"net.core.default_qdisc", "net.core.xfrm_", "net.ipv4.xfrm4_", "net.ipv6.xfrm6_",
	"net.ipv4.fib_multipath_", "net.ipv4.raw_l3mdev_accept", "net.ipv4.tcp_l3mdev_accept", "net.ipv4.udp_l3mdev_accept",
}

// netConfSysctls end the names of such parameters of an interface, net.ipv6.conf.NAME.
var netConfSysctls = []string{".accept_ra_rtr_pref", ".router_probe_interval"}

// sysctlOfNet says whether a kernel parameter takes Net. A slash may part the name, as for sysctl(8).
func sysctlOfNet(key string) bool {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		key = strings.ReplaceAll(key, "/", ".")
	}
	named := func(part string) bool { return strings.HasPrefix(key, part) }
	ends := func(part string) bool { return named("net.ipv6.conf.") && strings.HasSuffix(key, part) }
	return slices.ContainsFunc(netSysctls, named) || slices.ContainsFunc(netConfSysctls, ends)
}
