package main

import (
	"os/exec"
	"strings"
	"testing"
)

// Imports point one way: commands -> libvm -> guestproto <- guestinit.
func TestImports(t *testing.T) {
	const (
		hostCode  = "host code stays out of the guest"
		size      = "the initramfs and guestinit's start pay for it"
		leaf      = "both sides import it, so it imports neither"
		noCommand = "libvm is told what it needs; flags and output are the commands'"
	)
	forbid(t, "boxlite/guestinit", map[string]string{
		"boxlite/libvm": hostCode, "boxlite/kernels": hostCode, "net/http": size, "github.com/sirupsen/logrus": size, "testing": size,
	})
	forbid(t, "boxlite/internal/guestproto", map[string]string{"boxlite/libvm": leaf, "boxlite/guestinit": leaf, "boxlite/kernels": leaf})
	forbid(t, "boxlite/libvm/qmp", map[string]string{"boxlite/libvm": "it knows QEMU and nothing of containers"})
	forbid(t, "boxlite/libvm", map[string]string{"github.com/urfave/cli/v2": noCommand, "flag": noCommand, "testing": "it is for tests"})
}

// forbid fails for each of the packages, or a package below it, that pkg
// depends on.
func forbid(t *testing.T, pkg string, reasons map[string]string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", pkg).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pkg, err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		for bad, why := range reasons {
			if dep != pkg && (dep == bad || strings.HasPrefix(dep, bad+"/")) {
				t.Errorf("%s depends on %s: %s", pkg, dep, why)
			}
		}
	}
}
