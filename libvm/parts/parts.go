// Package parts finds what a VM is made of: QEMU, virtiofsd, the guest kernels
// and the initramfs. Errors say what to install and avoid words that callers of
// runc would take for a fault of the container's command.
package parts

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/boxlite-oci/boxlite/kernels"
)

// Options say where to look first. Empty fields leave it to Find.
type Options struct {
	QEMU      string // path of qemu-system-x86_64
	Virtiofsd string // path of virtiofsd
	Dir       string // directory with the kernels and the initramfs
}

// Parts are the files a VM is started from.
type Parts struct {
	QEMU      string
	Virtiofsd Virtiofsd
	// Firmware is qboot, which starts a kernel without asking a machine's worth
	// of hardware first; empty where QEMU came without it.
	Firmware  string
	Kernels   map[kernels.Kernel]string
	Initramfs string
}

// Virtiofsd is a virtiofsd and which of the two it is.
type Virtiofsd struct {
	Path    string
	Dialect Dialect
}

// Dialect is the form of virtiofsd's command line.
type Dialect string

// The two dialects: the C program that came with QEMU up to 7.2, and the Rust
// one that replaced it.
const (
	DialectC    Dialect = "c"
	DialectRust Dialect = "rust"
)

// Find locates every part. It starts no program.
func Find(o Options) (*Parts, error) {
	p := new(Parts)
	var err error
	if p.QEMU, err = FindQEMU(o); err != nil {
		return nil, err
	}
	if p.Virtiofsd, err = FindVirtiofsd(o); err != nil {
		return nil, err
	}
	p.Firmware = findFirmware()
	if p.Kernels, p.Initramfs, err = FindImages(o); err != nil {
		return nil, err
	}
	return p, nil
}

// FindQEMU looks on PATH, which a caller may have emptied, and where
// distributions put QEMU.
func FindQEMU(o Options) (string, error) {
	return findProgram("QEMU", o.QEMU, "qemu-system-x86", "qemu-system-x86_64",
		"/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm")
}

// FindVirtiofsd prefers the Rust virtiofsd where both are installed.
func FindVirtiofsd(o Options) (Virtiofsd, error) {
	path, err := findProgram("virtiofsd", o.Virtiofsd, "virtiofsd (or, before Debian 13, qemu-system-common)", "virtiofsd",
		"/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/local/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
	if err != nil {
		return Virtiofsd{}, err
	}
	dialect, err := dialectOf(path)
	return Virtiofsd{Path: path, Dialect: dialect}, err
}

// findProgram returns the flag's path if it is set, else the first of the known
// places, else what PATH has.
func findProgram(what, flag, install, name string, places ...string) (string, error) {
	if flag != "" {
		if !executable(flag) {
			return "", fmt.Errorf("%s: %s is no program that can be run", what, flag)
		}
		return flag, nil
	}
	for _, p := range places {
		if executable(p) {
			return p, nil
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	return "", fmt.Errorf("no %s on this machine (tried %s and PATH): install %s", what, strings.Join(places, ", "), install)
}

func findFirmware() string {
	for _, p := range []string{"/usr/share/qemu/qboot.rom", "/usr/share/qemu-kvm/qboot.rom", "/usr/local/share/qemu/qboot.rom"} {
		if readable(p) {
			return p
		}
	}
	return ""
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// dialectOf tells the two programs apart by an option that only the Rust one
// has, which saves starting it. QEMU's own directory holds the C one, and in
// Debian 13 a link to the Rust one.
func dialectOf(path string) (Dialect, error) {
	if target, err := filepath.EvalSymlinks(path); err == nil && filepath.Base(filepath.Dir(target)) == "qemu" {
		return DialectC, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("virtiofsd %s cannot be read", path)
	}
	if bytes.Contains(raw, []byte("shared-dir")) {
		return DialectRust, nil
	}
	return DialectC, nil
}

// Kernel is the path of one of the guest kernels.
func (p *Parts) Kernel(k kernels.Kernel) (string, error) {
	if path, ok := p.Kernels[k]; ok {
		return path, nil
	}
	how := "install boxlite-kernel, or run make install"
	if k == kernels.Full {
		how = "run make install-kernel-full"
	}
	return "", fmt.Errorf("no vmlinux-%s beside %s: %s", k, p.Initramfs, how)
}

// FindImages looks in the directory of the flag, beside the program, in
// ../lib/boxlite from there, and in /usr/lib/boxlite.
func FindImages(o Options) (map[kernels.Kernel]string, string, error) {
	dirs := []string{o.Dir}
	if o.Dir == "" {
		dirs = nil
		if exe, err := os.Executable(); err == nil {
			if real, err := filepath.EvalSymlinks(exe); err == nil {
				exe = real
			}
			bin := filepath.Dir(exe)
			dirs = append(dirs, bin, filepath.Join(filepath.Dir(bin), "lib", "boxlite"))
		}
		dirs = append(dirs, "/usr/local/lib/boxlite", "/usr/lib/boxlite")
	}
	for _, dir := range dirs {
		images := map[kernels.Kernel]string{}
		for _, k := range kernels.All {
			if path := filepath.Join(dir, "vmlinux-"+string(k)); readable(path) {
				images[k] = path
			}
		}
		initramfs := filepath.Join(dir, "initramfs.cpio")
		if len(images) > 0 && readable(initramfs) {
			return images, initramfs, nil
		}
	}
	return nil, "", fmt.Errorf("no guest kernels and initramfs on this machine (tried %s): install boxlite-kernel, run make install, or name their directory with --parts", strings.Join(dirs, ", "))
}

func readable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}
