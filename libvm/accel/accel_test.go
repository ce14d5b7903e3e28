package accel

import (
	"os"
	"strings"
	"testing"
)

func TestHasVirtualization(t *testing.T) {
	for _, c := range []struct {
		name, cpuinfo string
		want          bool
	}{
		{"AMD with SVM", "processor\t: 0\nflags\t\t: fpu svm sse4a\n", true},
		{"Intel with VMX", "flags\t\t: fpu vmx\n", true},
		{"a guest without", "flags\t\t: fpu hypervisor\nbugs\t\t: vmx_nonsense\n", false},
		{"part of another word", "flags\t\t: svm_lock xvmx\n", false},
		{"no flags at all", "processor\t: 0\n", false},
	} {
		got, err := hasVirtualization(strings.NewReader(c.cpuinfo))
		if err != nil || got != c.want {
			t.Errorf("%s: hasVirtualization = %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestResolve(t *testing.T) {
	if a, _, err := Resolve("tcg"); err != nil || a != TCG {
		t.Errorf(`Resolve("tcg") = %v, %v`, a, err)
	}
	if _, _, err := Resolve("hvf"); err == nil || !strings.Contains(err.Error(), "auto, kvm or tcg") {
		t.Errorf(`Resolve("hvf") error = %v, want one that lists the choices`, err)
	}
	usable := Usable()
	a, reason, err := Resolve("auto")
	if err != nil {
		t.Fatal(err)
	}
	if (a == KVM) != (usable == nil) {
		t.Errorf(`Resolve("auto") = %v (%s), but Usable says %v`, a, reason, usable)
	}
	if _, _, err := Resolve("kvm"); (err == nil) != (usable == nil) {
		t.Errorf(`Resolve("kvm") error = %v, but Usable says %v`, err, usable)
	}
}

func TestProbeOfOtherFile(t *testing.T) {
	if err := probe(os.DevNull); err == nil || !strings.Contains(err.Error(), "KVM_GET_API_VERSION") {
		t.Errorf("probe(%s) = %v, want an error of the first ioctl", os.DevNull, err)
	}
	if err := probe(t.TempDir() + "/none"); err == nil || !strings.Contains(err.Error(), "ENOENT") {
		t.Errorf("probe(missing) = %v, want ENOENT by its name", err)
	}
}

func TestEmulates(t *testing.T) {
	for text, want := range map[string]bool{
		"processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\nflags\t\t: svm\n":                true,
		"processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t\t: svm hypervisor\n":                 false,
		"processor\t: 0\nmodel name\t: QEMU Virtual CPU version 2.5+\nflags\t\t: svm hypervisor\n": false,
		"": false,
	} {
		if got := emulates(strings.NewReader(text)); got != want {
			t.Errorf("emulates(%q) = %v, want %v", text, got, want)
		}
	}
}
