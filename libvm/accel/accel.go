// Package accel decides whether a VM runs on hardware virtualization (KVM) or
// on QEMU's emulation (TCG).
package accel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Accel is a way to run a guest's code.
type Accel string

// The two ways.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

func (a Accel) String() string { return string(a) }

// Numbers of the KVM API (linux/kvm.h).
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmAPIVersion    = 12
)

// Resolve turns what the user wants (auto, kvm or tcg; empty is auto) into what
// is used, with the reason in words. Wanting kvm on a machine that has none is
// an error that says what is missing.
func Resolve(want string) (Accel, string, error) {
	switch want {
	case "tcg":
		return TCG, "asked for", nil
	case "kvm":
		if err := Usable(); err != nil {
			return "", "", fmt.Errorf("KVM was asked for and cannot be used: %w", err)
		}
		return KVM, "asked for", nil
	case "", "auto":
		if err := Usable(); err != nil {
			return TCG, "no KVM: " + err.Error(), nil
		}
		return KVM, "usable", nil
	default:
		return "", "", fmt.Errorf("invalid acceleration %q: auto, kvm or tcg", want)
	}
}

// Usable returns nil if KVM can run an ordinary kernel, or what speaks against
// it. A /dev/kvm that opens is not enough: some clouds show one that creates
// VMs in which a kernel never gets beyond its first instructions, on machines
// whose processors show no virtualization.
func Usable() error {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return errors.New("/proc/cpuinfo cannot be read")
	}
	defer f.Close()
	ok, err := hasVirtualization(f)
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("the processor shows neither vmx nor svm")
	}
	return probe("/dev/kvm")
}

// hasVirtualization looks for the flags of Intel's and AMD's extensions in the
// form of /proc/cpuinfo.
func hasVirtualization(cpuinfo io.Reader) (bool, error) {
	value, err := CPUInfo(cpuinfo, "flags")
	flags := strings.Fields(value)
	return slices.Contains(flags, "vmx") || slices.Contains(flags, "svm"), err
}

// Emulated says that the machine is itself one of QEMU's emulator (TCG). Its KVM then
// is an emulated one too, which loses interrupts of its VMs at times (seen with QEMU
// 7.2's SVM).
func Emulated() bool {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	return emulates(f)
}

// emulates looks for the model name that QEMU's emulator gives its processors.
func emulates(cpuinfo io.Reader) bool {
	model, err := CPUInfo(cpuinfo, "model name")
	return err == nil && strings.HasPrefix(model, "QEMU TCG ")
}

// CPUInfo is the value that a text in the form of /proc/cpuinfo has for a name, of its
// first processor; empty if there is none.
func CPUInfo(cpuinfo io.Reader, name string) (string, error) {
	s := bufio.NewScanner(cpuinfo)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if key, value, _ := strings.Cut(s.Text(), ":"); strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", s.Err()
}

// probe creates a VM and lets it go again.
func probe(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		var errno unix.Errno
		_ = errors.As(err, &errno) // it is one
		return fmt.Errorf("%s does not open (%s)", path, unix.ErrnoName(errno))
	}
	defer unix.Close(fd)
	version, err := ioctl(fd, kvmGetAPIVersion)
	if err != nil {
		return fmt.Errorf("%s: KVM_GET_API_VERSION: %w", path, err)
	}
	if version != kvmAPIVersion {
		return fmt.Errorf("%s speaks KVM API %d, not %d", path, version, kvmAPIVersion)
	}
	vm, err := ioctl(fd, kvmCreateVM)
	if err != nil {
		return fmt.Errorf("%s creates no VM: %w", path, err)
	}
	return unix.Close(vm)
}

// ioctl is for requests that take no argument and answer with a number.
func ioctl(fd int, request uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, 0)
	if errno != 0 {
		return 0, errors.New(unix.ErrnoName(errno))
	}
	return int(n), nil
}
