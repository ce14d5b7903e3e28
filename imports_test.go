package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/boxlite-oci/boxlite"

// Imports point one way: commands -> libvm -> guestproto <- guestinit.
func TestImports(t *testing.T) {
	const (
		hostCode  = "host code stays out of the guest"
		size      = "the initramfs and guestinit's start pay for it"
		leaf      = "both sides import it, so it imports neither"
		noCommand = "libvm is told what it needs; flags and output are the commands'"
		pure      = "a plan is made, not carried out"
		onlyVMs   = "a VM knows nothing of containers and of who owns it"
		below     = "all may use it, so it uses none of them"
	)
	forbid(t, "github.com/boxlite-oci/boxlite/guestinit", map[string]string{
		"github.com/boxlite-oci/boxlite/libvm": hostCode, "github.com/boxlite-oci/boxlite/kernels": hostCode, "net/http": size, "github.com/sirupsen/logrus": size, "testing": size,
	})
	forbid(t, "github.com/boxlite-oci/boxlite/internal/guestproto", map[string]string{"github.com/boxlite-oci/boxlite/libvm": leaf, "github.com/boxlite-oci/boxlite/guestinit": leaf, "github.com/boxlite-oci/boxlite/kernels": leaf})
	forbid(t, "github.com/boxlite-oci/boxlite/libvm/qmp", map[string]string{"github.com/boxlite-oci/boxlite/libvm": "it knows QEMU and nothing of containers"})
	forbid(t, "github.com/boxlite-oci/boxlite/libvm", map[string]string{"github.com/urfave/cli/v2": noCommand, "flag": noCommand, "testing": "it is for tests"})
}

// forbid fails for each of the packages, or a package below it, that pkg
// depends on.
func forbid(t *testing.T, pkg string, reasons map[string]string) {
	t.Helper()
	for _, dep := range dependencies(t, pkg) {
		for bad, why := range reasons {
			if dep != pkg && (dep == bad || strings.HasPrefix(dep, bad+"/")) {
				t.Errorf("%s depends on %s: %s", pkg, dep, why)
			}
		}
	}
}

// forbidExactly is forbid for one package without those below it.
func forbidExactly(t *testing.T, pkg, bad, why string) {
	t.Helper()
	if slices.Contains(dependencies(t, pkg), bad) {
		t.Errorf("%s depends on %s: %s", pkg, bad, why)
	}
}

func dependencies(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", pkg).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pkg, err)
	}
	return strings.Fields(string(out))
}
