package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What runc was vulnerable to, tried on boxlite: the rows of SECURITY.md that no other test holds. Each case ends with a
// container's own word of what it could do.

// CVE-2016-3697: a line of the image's passwd whose name is a number made that user root.
func TestCVE20163697NumberForAName(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("cve-2016-3697", "id -u; exec sleep 1000", func(s *specs.Spec) { s.Process.User = specs.User{UID: 1000, GID: 1000} })
		h.noErr(os.WriteFile(b.rootfs("etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\n"), 0o644))
		c := h.create(b)
		c.start()
		h.expect(c.out, "1000\n")
		h.want("user of an exec", h.must("exec", "--user", "1000", b.id, "id", "-u"), "1000\n")
		h.must("delete", "--force", b.id)
		c.out.wait()
	})
}

// CVE-2016-9962: what is to become the container's process has nothing that another process of the container could use.
func TestCVE20169962ProcessHeldBeforeItsExec(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("cve-2016-9962", "exec sleep 1000", nil)
		c := h.create(b)
		got := h.cmd("exec", b.id, "sh", "-c", "ls /proc/1/fd/ >/dev/null 2>&1 && ls -l /proc/1/fd/; cat /proc/1/root/etc/hostname; readlink /proc/1/exe; true")
		if got.code != 0 || strings.Contains(got.stdout, "->") || strings.Contains(got.stdout, "init") {
			h.Errorf("a process that is held shows %s", got)
		}
		h.must("delete", "--force", b.id)
		c.out.wait()
	})
}

// CVE-2019-5736: /proc/self/exe of a process that is about to become the container's was the host's program.
func TestCVE20195736ProgramBehindProcExe(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		before := h.shOut("sha256sum " + h.rt.bin + " " + filepath.Join(filepath.Dir(h.rt.bin), "initramfs.cpio"))
		b := h.bundle("cve-2019-5736", `while :; do for p in /proc/[0-9]*; do echo overwritten 2>/dev/null >$p/exe; done; done`, nil)
		c := h.create(b)
		c.start()
		for range 5 {
			h.cmd("exec", b.id, "/proc/self/exe") // whatever that is there
		}
		h.want("exec afterwards", h.must("exec", b.id, "echo", "ok"), "ok\n")
		h.want("programs of the host", h.shOut("sha256sum "+h.rt.bin+" "+filepath.Join(filepath.Dir(h.rt.bin), "initramfs.cpio")), before)
		h.must("delete", "--force", b.id)
		c.out.wait()
	})
}

// CVE-2024-21626: a working directory that is a descriptor of the runtime's was a directory of the host's.
func TestCVE202421626WorkingDirectoryIsADescriptor(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("cve-2024-21626", "exec sleep 1000", nil)
		c := h.create(b)
		c.start()
		for fd := 3; fd < 9; fd++ {
			dir := "/proc/self/fd/" + itoa(fd)
			r := h.cmd("exec", "--cwd", dir, b.id, "sh", "-c", "cat ../../../../../../../../../../../../etc/hostname; ls ../../../../../../../../../../.."+workDir)
			if r.code == 0 || strings.Contains(r.stdout, "bundle-") {
				h.Errorf("an exec in %s: %s", dir, r)
			}
		}
		h.must("delete", "--force", b.id)
		c.out.wait()
		for fd := 3; fd < 9; fd++ {
			b := h.bundle("cve-2024-21626-"+itoa(fd), "ls ../../../../../../../../../../.."+workDir, func(s *specs.Spec) { s.Process.Cwd = "/proc/self/fd/" + itoa(fd) })
			r := h.cmd("run", "--bundle", b.dir, b.id)
			if r.code == 0 || strings.Contains(r.stdout, "bundle-") {
				h.Errorf("a container in %s: %s", "/proc/self/fd/"+itoa(fd), r)
			}
		}
	})
}

// CVE-2025-31133 and CVE-2025-52565: what masks a path, and what is mounted on the console, are links of the image's. The files
// that they lead to are the container's own kernel's, and the host's are as before.
func TestCVE2025MasksAndConsoleAreLinks(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		const files = "/proc/sys/kernel/core_pattern /proc/sys/kernel/hostname"
		before := h.shOut("cat " + files)
		b := h.bundle("cve-2025", `echo "|/bin/evil" >/proc/kcore; echo "|/bin/evil" >/dev/console; cat /proc/sys/kernel/core_pattern; echo done`, func(s *specs.Spec) {
			s.Mounts = withoutDev(s.Mounts)
			s.Linux.MaskedPaths = []string{"/proc/kcore", "/proc/keys"}
		})
		h.shOut("cd " + b.rootfs("dev") + " && rm -rf null console pts && ln -s /proc/sys/kernel/core_pattern null && ln -s /proc/sys/kernel/core_pattern console && ln -s /proc/sys/kernel pts")
		r := h.cmd("run", "--bundle", b.dir, b.id)
		h.Logf("said %s", r)
		if strings.Contains(r.stdout, "/bin/evil") {
			h.Errorf("the container wrote a parameter of its kernel through a mask: %s", r)
		}
		h.want("the host's parameters", h.shOut("cat "+files), before)
	})
}

// CVE-2026-41579: an image's /dev is a link, and the host filled what it leads to.
func TestCVE202641579DevIsALink(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		aim := h.diskDir()
		for name, edit := range map[string]func(*specs.Spec){
			"tmpfs": nil,
			"none":  func(s *specs.Spec) { s.Mounts = withoutDev(s.Mounts) },
		} {
			b := h.bundle("cve-2026-41579-"+name, "exit 0", edit)
			up := strings.Repeat("../", 12)
			h.shOut("rm -rf " + b.rootfs("dev") + " && ln -s " + up + aim + " " + b.rootfs("dev"))
			r := h.cmd("run", "--bundle", b.dir, b.id)
			h.Logf("%s: %s", name, r)
			entries, err := os.ReadDir(aim)
			h.noErr(err)
			if len(entries) != 0 {
				h.Errorf("%s: the host has made %v", name, entries)
			}
		}
	})
}

// withoutDev leaves the container's /dev to its image.
func withoutDev(mounts []specs.Mount) (left []specs.Mount) {
	for _, m := range mounts {
		if m.Destination != "/dev" && !strings.HasPrefix(m.Destination, "/dev/") {
			left = append(left, m)
		}
	}
	return left
}
