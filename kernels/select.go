// Package kernels decides which of the guest kernels a container boots. It owns that choice and, beside the Go code, the
// configs and the script they are built with; finding the built files and booting them is left to others.
package kernels

import (
	"fmt"
	"slices"
)

// Kernel names a guest kernel by the name build.sh builds it under.
type Kernel string

const (
	Lean Kernel = "lean" // sockets and one NIC
	Net  Kernel = "net"  // Lean plus netfilter, virtual interfaces, traffic control
)

// Annotation is the key in config.json by which a container asks for a kernel.
const Annotation = "boxlite.kernel"

// Select picks the kernel for a container with the capabilities caps (names as config.json spells them). A non-empty flag
// wins over a non-empty annotation, and both over the capabilities. The reason is a phrase for the log. A name that
// is neither Lean nor Net is an error.
func Select(caps []string, annotation, flag string) (kernel Kernel, reason string, err error) {
	switch {
	case flag != "":
		kernel, reason = Kernel(flag), "flag --kernel"
	case annotation != "":
		kernel, reason = Kernel(annotation), "annotation "+Annotation
	case slices.Contains(caps, "CAP_NET_ADMIN"):
		return Net, "CAP_NET_ADMIN is among the capabilities", nil
	default:
		return Lean, "CAP_NET_ADMIN is not among the capabilities", nil
	}
	if kernel != Lean && kernel != Net {
		return "", "", fmt.Errorf("%s: unknown kernel %q, valid are %q and %q", reason, string(kernel), Lean, Net)
	}
	return kernel, reason, nil
}
