package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A setUpMistake is something that is wrong with a machine, and what a new user reads.
type setUpMistake struct {
	name string
	// make makes it, until the case ends, and may add flags.
	make func(h *hand)
	edit func(*hand, *specs.Spec)
	want string // of the one error, an expression: whose fault, and the next step
	// docker is the same mistake through docker run: flags and what it says.
	docker []string
}

// Each mistake in setting up a machine is met by create with one line, that says what is wrong and what to do. Docker shows
// it too, with the status 125 that is for what is not the command's fault.
func TestSetUpMistakes(t *testing.T) {
	inNetwork := func(_ *hand, s *specs.Spec) { joinNetwork(s) }
	for _, m := range []setUpMistake{
		{
			name: "no-qemu", make: func(h *hand) { h.hide("/usr/bin/qemu-system-x86_64") },
			want: `no QEMU on this machine \(tried .*\): install qemu-system-x86`, docker: []string{},
		},
		{
			name: "no-virtiofsd", make: func(h *hand) {
				for _, path := range []string{"/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"} {
					if _, err := os.Stat(path); err == nil {
						h.hide(path)
					}
				}
			},
			want: `no virtiofsd on this machine \(tried .*\): install virtiofsd \(or, before Debian 13, qemu-system-common\)`, docker: []string{},
		},
		{
			name: "no-tun-device", make: func(h *hand) { h.emptyDir("/dev/net"); h.inMadeNetwork("cable", "true") }, edit: inNetwork,
			want: `interface eth7: open /dev/net/tun: ENOENT: this machine has none: modprobe tun, or .*--device /dev/net/tun`, docker: []string{},
		},
		{
			// A socket cannot be opened, like a device without a driver.
			name: "no-tun-module", make: func(h *hand) {
				h.emptyDir("/dev/net")
				l, err := net.Listen("unix", "/dev/net/tun")
				h.noErr(err)
				h.Cleanup(func() { l.Close() })
				h.inMadeNetwork("cable", "true")
			}, edit: inNetwork,
			want: `interface eth7: open /dev/net/tun: ENXIO: this machine's kernel has no tun driver: modprobe tun`, docker: []string{},
		},
		{
			name: "no-kernels", make: func(h *hand) { h.flags = append(h.flags, "--parts", h.diskDir()) },
			want: `no guest kernels and initramfs on this machine \(tried .*/case\): install boxlite-kernel, run make install, or name .* --parts`,
		},
		{
			name: "no-lean-kernel", make: func(h *hand) { h.hide(filepath.Join(filepath.Dir(h.rt.bin), "vmlinux-lean")) },
			want: `no vmlinux-lean beside .*/initramfs.cpio: install boxlite-kernel, or run make install`, docker: []string{},
		},
		{
			name: "full-disk", make: func(h *hand) {}, edit: func(h *hand, s *specs.Spec) {
				full := filepath.Join(h.diskDir(), "full")
				h.shOut(fmt.Sprintf(`
n=$(find %[2]s/rootfs | wc -l); mkdir %[1]s
mount -n -t tmpfs -o size=32m,nr_inodes=$((n + 1)) none %[1]s
cp -a %[2]s/rootfs/. %[1]s; ! touch %[1]s/fill1 %[1]s/fill2 2>/dev/null`, full, workDir))
				h.Cleanup(func() { h.shOut("umount -n " + full) })
				s.Root.Path = full
				addMount("/not/there", "tmpfs", "none")(s)
			},
			want: `no space left on device.* \(this machine's disk is full there: df -h and df -i show it\)`,
		},
		{
			name: "full-run", make: func(h *hand) {
				h.root = "/run/byhand/full"
				h.shOut("mkdir -p /run/byhand/full; mount -n -t tmpfs -o size=16k none /run/byhand/full; head -c 64k /dev/zero >/run/byhand/full/fill 2>/dev/null || :")
				h.Cleanup(func() { h.shOut("umount -n /run/byhand/full") })
			},
			want: `/run/byhand/full/.*: no space left on device \(this machine's disk is full there: df -h and df -i show it\)`,
		},
		{
			name: "too-much-memory", make: func(h *hand) { h.flags = append(h.flags, "--vm-memory", "100000000") },
			want: `VM memory of 100000000 MiB: this machine has \d+ with swap: ask for less`,
		},
		{
			name: "cgroup-without-memory", make: func(*hand) {}, edit: func(h *hand, s *specs.Spec) {
				tight := h.tightCgroup()
				s.Linux.CgroupsPath = tight + "/" + filepath.Base(s.Linux.CgroupsPath)
			},
			want: `(QEMU: signal: killed: |the monitor ended before the container was ready \(killed, )as this machine's kernel does for want of memory: dmesg says so; give`,
		},
	} {
		t.Run(m.name, func(t *testing.T) {
			eachVM(t, func(e *env) {
				h := e.byHand()
				b := h.bundle("mistake", "echo must not run", nil)
				m.make(h)
				spec := defaultSpec(b.id, "sh", "-c", "echo must not run")
				if m.edit != nil {
					m.edit(h, spec)
				}
				h.writeSpec(b, spec)
				h.wantFail(m.want, "create", "--bundle", b.dir, b.id)
				if m.docker == nil {
					return
				}
				r := e.run(append(m.docker, "busybox", "true")...)
				e.wantCode(r, 125)
				e.wantPart("docker's error", r.stderr, m.dockerSays())
			})
		})
	}
}

// dockerSays is the last part of the error, the next step: what is before depends on the container.
func (m setUpMistake) dockerSays() string {
	switch {
	case strings.Contains(m.name, "tun"):
		return ": modprobe tun"
	case strings.Contains(m.name, "kernel"):
		return ": install boxlite-kernel"
	default:
		return ": install "
	}
}

// hide has a file be none of use, for this suite's processes and the engine's, until the case ends.
func (h *hand) hide(path string) {
	h.Helper()
	h.shOut("mount -n --bind /dev/null " + path)
	h.Cleanup(func() { h.shOut("umount -n " + path) })
}

// emptyDir puts an empty file system over a directory until the case ends.
func (h *hand) emptyDir(path string) {
	h.Helper()
	h.shOut("mount -n -t tmpfs none " + path)
	h.Cleanup(func() { h.shOut("umount -n " + path) })
}

// tightCgroup makes a cgroup, below this run's own, that has no room for a VM.
func (h *hand) tightCgroup() string {
	h.Helper()
	path := "/" + tag + "/tight"
	dir, file := "/sys/fs/cgroup/memory"+path, "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		dir, file = "/sys/fs/cgroup"+path, "memory.max"
		h.noErr(os.MkdirAll(filepath.Dir(dir), 0o755))
		_ = os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), []byte("+memory"), 0o644) // it may be there already
	}
	h.noErr(os.MkdirAll(dir, 0o755))
	h.noErr(os.WriteFile(filepath.Join(dir, file), []byte("41943040"), 0o644))
	h.Cleanup(func() { h.shOut("find /sys/fs/cgroup -depth -type d -path '*" + path + "*' -exec rmdir {} + || :") })
	return path
}

// Labels of SELinux's are for hosts that have it: on others a container with them runs.
func TestSELinuxLabelsWithoutSELinux(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("labels", "echo it runs", func(s *specs.Spec) {
			s.Process.SelinuxLabel = "system_u:system_r:container_t:s0:c1,c2"
			s.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
		})
		e.want("stdout", h.must("run", "--bundle", b.dir, b.id), "it runs\n")
	})
}

// Install says where a broken configuration is broken, and leaves it.
func TestInstallIntoBrokenConfiguration(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		h.root = ""
		path := filepath.Join(e.diskDir(), "daemon.json")
		const broken = "{\n\t\"debug\": true\n\t\"bridge\": \"none\"\n}\n"
		e.noErr(os.WriteFile(path, []byte(broken), 0o644))
		h.wantFail(`daemon\.json: line 3, column 2: `, "install", "--docker", "--config", path)
		after, err := os.ReadFile(path)
		e.noErr(err)
		e.want("daemon.json afterwards", string(after), broken)
	})
}
