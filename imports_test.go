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
		noCommand = "it is told what it needs; flags and output are the commands'"
		pure      = "a plan is made, not carried out"
		onlyVMs   = "a VM knows nothing of containers and of who owns it"
		below     = "all may use it, so it uses none of them"
	)
	forbid(t, module+"/guestinit", map[string]string{
		module + "/libvm": hostCode, module + "/kernels": hostCode, "net/http": size, "github.com/sirupsen/logrus": size, "testing": size,
	})
	forbid(t, module+"/internal/guestproto", map[string]string{module + "/libvm": leaf, module + "/guestinit": leaf, module + "/kernels": leaf})
	forbid(t, module+"/internal/sockrelay", map[string]string{module + "/libvm": leaf, module + "/guestinit": leaf, module + "/internal/guestproto": leaf})
	forbid(t, module+"/internal/inotify", map[string]string{module + "/libvm": leaf, module + "/guestinit": leaf, module + "/internal/guestproto": leaf})
	forbid(t, module+"/internal/tsc", map[string]string{module + "/libvm": leaf, module + "/guestinit": leaf, module + "/internal/guestproto": leaf})
	forbid(t, module+"/libvm/qmp", map[string]string{module + "/libvm": "it knows QEMU and nothing of containers"})
	forbid(t, module+"/libvm/plan", map[string]string{
		"os/exec": pure, module + "/libvm/qmp": pure, module + "/libvm/hostcgroup": pure, module + "/libvm/hostsocket": pure, module + "/libvm/hostnet": pure,
		module + "/libvm/rootfs": pure, module + "/libvm/vmm": pure, module + "/libvm/fdpass": pure, module + "/libvm/template": pure,
	})
	forbid(t, module+"/libvm/vmm", map[string]string{
		module + "/libvm/hostcgroup": onlyVMs, module + "/libvm/hostsocket": onlyVMs, module + "/libvm/hostnet": onlyVMs, module + "/libvm/controlport": onlyVMs, module + "/libvm/lockdown": onlyVMs,
	})
	for _, leaf := range []string{"fault", "fdpass", "guesttext", "turn", "self", "qmp", "template", "controlport", "lockdown"} {
		forbid(t, module+"/libvm/"+leaf, map[string]string{module + "/libvm/plan": below, module + "/libvm/vmm": below, module + "/libvm/rootfs": below})
	}
	for _, room := range []string{"plan", "vmm", "rootfs", "hostcgroup", "hostnet", "hostsocket", "hostwatch", "latemounts", "template", "parts", "fault", "fdpass", "guesttext", "turn", "self"} {
		forbidExactly(t, module+"/libvm/"+room, module+"/libvm", "no name points back to Container and the monitor")
	}
	forbid(t, module+"/engineconfig", map[string]string{
		module + "/libvm": "it knows engines' files and nothing of containers", "github.com/urfave/cli/v2": noCommand, "testing": "it is for tests",
	})
	forbid(t, module+"/libvm", map[string]string{"github.com/urfave/cli/v2": noCommand, "flag": noCommand, "testing": "it is for tests"})
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
