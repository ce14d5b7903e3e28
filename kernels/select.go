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
	Full Kernel = "full" // Net plus tracing, more file systems and networks; not built unless asked for
)

// All are the kernels, each with all that the one before it has.
var All = []Kernel{Lean, Net, Full}

// Has says whether everything of another kernel is in k.
func (k Kernel) Has(other Kernel) bool { return slices.Index(All, k) >= slices.Index(All, other) }

// Annotation is the key in config.json by which a container asks for a kernel.
const Annotation = "boxlite.kernel"

// Needs are what of a config.json only some of the kernels have. The zero value needs none but Lean.
type Needs struct {
	Capabilities []string          // names as config.json spells them
	Sysctls      map[string]string // linux.sysctl
	Devices      []string          // type and number of each of linux.devices, as in "c108:0"
	// Full says that the kernel Full is there to be chosen. Who could use it makes do with Net or Lean otherwise.
	Full bool
}

// Select picks the kernel for a container with these needs. A non-empty flag wins over a non-empty annotation, and both
// over the needs. The reason is a phrase for the log. A name that is none of All is an error.
func Select(needs Needs, annotation, flag string) (kernel Kernel, reason string, err error) {
	switch {
	case flag != "":
		kernel, reason = Kernel(flag), "flag --kernel"
	case annotation != "":
		kernel, reason = Kernel(annotation), "annotation "+Annotation
	default:
		kernel, reason = needs.kernel()
	}
	if !slices.Contains(All, kernel) {
		return "", "", fmt.Errorf("%s: unknown kernel %q, valid are %q, %q and %q", reason, string(kernel), Lean, Net, Full)
	}
	return kernel, reason, nil
}

func (n Needs) kernel() (Kernel, string) {
	if i := slices.IndexFunc(n.Capabilities, ofFull); i >= 0 && n.Full {
		return Full, n.Capabilities[i] + " is among the capabilities"
	}
	for _, path := range slices.Sorted(maps.Keys(DevicesOfFull)) {
		if n.Full && slices.Contains(n.Devices, DevicesOfFull[path]) {
			return Full, path + " is among the devices"
		}
	}
	sysctls := slices.Sorted(maps.Keys(n.Sysctls))
	if i := slices.IndexFunc(sysctls, sysctlOfFull); i >= 0 && n.Full {
		return Full, "sysctl " + sysctls[i] + " is set"
	}
	if slices.Contains(n.Capabilities, "CAP_NET_ADMIN") {
		return Net, "CAP_NET_ADMIN is among the capabilities"
	}
	if i := slices.IndexFunc(sysctls, sysctlOfNet); i >= 0 {
		return Net, "sysctl " + sysctls[i] + " is set"
	}
	return Lean, "nothing in config.json needs " + string(Net)
}

// DevicesOfFull are the nodes that only Full stands behind, with type and number (Documentation/admin-guide/devices.txt).
var DevicesOfFull = map[string]string{"/dev/ppp": "c108:0", "/dev/btrfs-control": "c10:234"}

// ofFull says whether Full has more than Net for a capability: to trace, and to mount.
func ofFull(capability string) bool {
	return capability == "CAP_SYS_ADMIN" || capability == "CAP_BPF" || capability == "CAP_PERFMON"
}

// Traces says whether a process with these capabilities may trace the kernel.
func Traces(capabilities []string) bool { return slices.ContainsFunc(capabilities, ofFull) }

// netSysctls begin or are the names of the kernel parameters that Net has and Lean lacks, where a dot parts them.
var netSysctls = []string{
	"net.bridge.", "net.netfilter.nf_conntrack_events", "net.netfilter.nf_conntrack_sctp_", "net.netfilter.nf_flowtable_",
	"net.netfilter.nf_hooks_lwtunnel", "net.ipv4.vs.", "net.sctp.", "net.vrf.",
	"net.core.default_qdisc", "net.core.xfrm_", "net.ipv4.xfrm4_", "net.ipv6.xfrm6_",
	"net.ipv4.fib_multipath_", "net.ipv4.raw_l3mdev_accept", "net.ipv4.tcp_l3mdev_accept", "net.ipv4.udp_l3mdev_accept",
}

// netConfSysctls end the names of such parameters of an interface, net.ipv6.conf.NAME.
var netConfSysctls = []string{".accept_ra_rtr_pref", ".router_probe_interval"}

// dotted is the name of a kernel parameter with dots. A slash may part the name, as for sysctl(8).
func dotted(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		return strings.ReplaceAll(key, "/", ".")
	}
	return key
}

// sysctlOfFull says whether a kernel parameter takes Full.
func sysctlOfFull(key string) bool { return strings.HasPrefix(dotted(key), "net.mpls.") }

// sysctlOfNet says whether a kernel parameter takes Net.
func sysctlOfNet(key string) bool {
	key = dotted(key)
	named := func(part string) bool { return strings.HasPrefix(key, part) }
	ends := func(part string) bool { return named("net.ipv6.conf.") && strings.HasSuffix(key, part) }
	return slices.ContainsFunc(netSysctls, named) || slices.ContainsFunc(netConfSysctls, ends)
}
