package parts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/kernels"
)

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDialects(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		path, content string
		want          Dialect
	}{
		{"qemu/virtiofsd", "whatever it says: shared-dir", DialectC},
		{"libexec/virtiofsd", "usage: --shared-dir <shared-dir>", DialectRust},
		{"bin/virtiofsd", "-o source=PATH", DialectC},
	} {
		path := write(t, filepath.Join(dir, c.path), c.content, 0o755)
		got, err := FindVirtiofsd(Options{Virtiofsd: path})
		if err != nil || got.Dialect != c.want || got.Path != path {
			t.Errorf("%s: FindVirtiofsd = %+v, %v, want dialect %s", c.path, got, err, c.want)
		}
	}
	link := filepath.Join(dir, "debian13/qemu/virtiofsd")
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../libexec/virtiofsd", link); err != nil {
		t.Fatal(err)
	}
	if got, err := FindVirtiofsd(Options{Virtiofsd: link}); err != nil || got.Dialect != DialectRust {
		t.Errorf("a link in QEMU's directory to the Rust one: FindVirtiofsd = %+v, %v", got, err)
	}
}

func TestProgramThatCannotBeRun(t *testing.T) {
	plain := write(t, filepath.Join(t.TempDir(), "qemu"), "", 0o644)
	for _, path := range []string{plain, t.TempDir(), "/nonexistent/qemu"} {
		_, err := FindQEMU(Options{QEMU: path})
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("FindQEMU(%s) = %v, want an error that names it", path, err)
		}
	}
}

func TestImages(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := FindImages(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "make install") {
		t.Errorf("an empty directory: %v", err)
	}
	lean := write(t, filepath.Join(dir, "vmlinux-lean"), "", 0o644)
	initramfs := write(t, filepath.Join(dir, "initramfs.cpio"), "", 0o644)
	images, gotInitramfs, err := FindImages(Options{Dir: dir})
	if err != nil || images[kernels.Lean] != lean || gotInitramfs != initramfs {
		t.Fatalf("FindImages = %v, %q, %v", images, gotInitramfs, err)
	}
	p := Parts{Kernels: images, Initramfs: gotInitramfs}
	if path, err := p.Kernel(kernels.Lean); err != nil || path != lean {
		t.Errorf("Kernel(lean) = %q, %v", path, err)
	}
	if _, err := p.Kernel(kernels.Net); err == nil || !strings.Contains(err.Error(), "vmlinux-net") {
		t.Errorf("Kernel(net) = %v, want an error that names the missing file", err)
	}
}

// No error may hold words that callers take for a fault of the container's
// command (docs/contract.md, "Rules", 9).
func TestErrorsAreNotOfCommands(t *testing.T) {
	_, qemuErr := FindQEMU(Options{QEMU: "/nonexistent"})
	_, virtiofsdErr := FindVirtiofsd(Options{Virtiofsd: "/nonexistent"})
	_, _, imagesErr := FindImages(Options{Dir: "/nonexistent"})
	for _, err := range []error{qemuErr, virtiofsdErr, imagesErr} {
		if err == nil {
			t.Error("no error for what is not there")
			continue
		}
		for _, phrase := range []string{"not found", "no such file", "permission denied", "not permitted", "a directory"} {
			if strings.Contains(strings.ToLower(err.Error()), phrase) {
				t.Errorf("%q says %q", err, phrase)
			}
		}
	}
}
