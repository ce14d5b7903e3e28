// Package fakevm is for tests that need a VM's outside only. It stands in for QEMU,
// virtiofsd and the guest: a test binary is all three, under other names.
//
// Real are the processes, the descriptors they inherit, the cell they run in, QMP, the
// memory of templates and the control protocol. The guest's container is a few words
// of a program, see guest.go.
package fakevm

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/parts"
)

const (
	qemuName      = "fake-qemu"
	virtiofsdName = "fake-virtiofsd"
	// faultSuffix is for the file beside the program that says what it does wrong.
	faultSuffix = ".fault"
)

// Main is what TestMain calls first. It does not return in a process that was started
// as one of the stand-ins.
func Main() {
	switch filepath.Base(os.Args[0]) {
	case qemuName:
		runQEMU()
	case virtiofsdName:
		runVirtiofsd()
	}
}

// Programs are the parts of a fake VM, in a directory of their own.
type Programs struct {
	parts.Options
	t *testing.T
}

// Install makes the parts. The test needs root, without which QEMU's cell cannot be
// made, and is skipped otherwise.
func Install(t *testing.T) Programs {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for mount namespaces")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := Programs{t: t, Options: parts.Options{QEMU: filepath.Join(dir, qemuName), Virtiofsd: filepath.Join(dir, virtiofsdName), Dir: dir}}
	for _, link := range []string{p.QEMU, p.Virtiofsd} {
		if err := os.Symlink(self, link); err != nil {
			t.Fatal(err)
		}
	}
	for _, image := range []string{"vmlinux-lean", "vmlinux-net", "initramfs.cpio"} {
		if err := os.WriteFile(filepath.Join(dir, image), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// A Fault is what QEMU does wrong.
type Fault string

const (
	// NoGreeting has QEMU end before its first word.
	NoGreeting Fault = "no-greeting"
	// LateGuest has the guest open its port only after QEMU was asked for it.
	LateGuest Fault = "late-guest"
)

// Refuse has QEMU refuse a command.
func Refuse(command string) Fault { return Fault("refuse " + command) }

// DieAt has QEMU end when it gets a command.
func DieAt(command string) Fault { return Fault("die " + command) }

// QEMUFaults has every QEMU that is started from now on do these things wrong.
func (p Programs) QEMUFaults(faults ...Fault) {
	p.t.Helper()
	var text strings.Builder
	for _, f := range faults {
		text.WriteString(string(f) + "\n")
	}
	if err := os.WriteFile(p.QEMU+faultSuffix, []byte(text.String()), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// Break has a program end at once: QEMU or Virtiofsd of the options.
func (p Programs) Break(program string) {
	p.t.Helper()
	if err := os.Remove(program); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Symlink("/bin/false", program); err != nil {
		p.t.Fatal(err)
	}
}

// Connections are the two ends of a connection, which the test's end closes.
func Connections(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	ours, file, err := fdpass.Socketpair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	t.Cleanup(func() { _, _ = ours.Close(), conn.Close() })
	return ours, conn.(*net.UnixConn)
}
