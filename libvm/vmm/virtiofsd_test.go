package vmm

import (
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/internal/golden"
	"github.com/boxlite-oci/boxlite/libvm/parts"
)

func TestVirtiofsdArgsGolden(t *testing.T) {
	for name, args := range map[string][]string{
		"c":          virtiofsdArgs(parts.DialectC, 3, "/share", false),
		"c-nodes":    virtiofsdArgs(parts.DialectC, 3, "/share", true),
		"rust":       virtiofsdArgs(parts.DialectRust, 3, "/share", false),
		"rust-nodes": virtiofsdArgs(parts.DialectRust, 3, "/share", true),
	} {
		t.Run(name, func(t *testing.T) {
			golden.Compare(t, "virtiofsd-"+name+".args", []byte(strings.Join(args, "\n")+"\n"))
		})
	}
}
