package systemd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/boxlite-oci/boxlite/internal/tsc"
	"github.com/boxlite-oci/boxlite/libvm/parts"
)

// outerLimit is how long the machine may take, with both its boots.
const outerLimit = 50 * time.Minute

// bin is where make has left boxlite and its parts.
const bin = "../../bin"

func TestSystemd(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("root is needed: debootstrap makes the machine")
	}
	dir, err := os.MkdirTemp("/var/tmp", "bxsystemd") // on a disk: the machine's has gigabytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	m := machine{t: t, dir: dir}
	m.makeDisks()
	results := m.run()
	for _, name := range []string{"TestInsideBefore", "TestInsideAfter"} {
		if !strings.Contains(results, "\n--- PASS: "+name+" ") {
			t.Errorf("%s did not pass in the machine", name)
		}
	}
	if t.Failed() {
		text, err := os.ReadFile(filepath.Join(dir, "console"))
		t.Logf("console of the machine: %v\n%s", err, text)
	}
}

// A machine is a VM with a Debian 13 that systemd runs. Everything of it is below dir.
type machine struct {
	t   *testing.T
	dir string
}

func (m machine) path(name string) string { return filepath.Join(m.dir, name) }

// command runs a program to its end and returns its stdout.
func (m machine) command(name string, args ...string) string {
	m.t.Helper()
	var stderr strings.Builder
	c := exec.Command(name, args...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		m.t.Fatalf("%s %q: %v: %s%s", name, args, err, out, &stderr)
	}
	return string(out)
}

// makeDisks makes the machine's root disk, and a second one with what it tests. The kernel and its initrd are files beside.
func (m machine) makeDisks() {
	m.t.Helper()
	report := strings.Fields(m.command("../../images/build.sh", "--suite", "trixie", "host")) // its last word is the archive
	root, check := m.path("root"), m.path("check")
	for _, dir := range []string{root, check} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	m.command("tar", "-C", root, "-xf", report[len(report)-1])
	m.command("sh", "-c", `cp -L "$1/vmlinuz" "$1/initrd.img" "$2"`, "sh", root, m.dir)
	m.command("mke2fs", "-q", "-t", "ext4", "-d", root, m.path("root.img"), "8G")
	if err := os.RemoveAll(root); err != nil {
		m.t.Fatal(err)
	}
	m.command("cp", "-a", bin+"/boxlite", bin+"/initramfs.cpio", bin+"/vmlinux-lean", bin+"/vmlinux-net", "run", check)
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	m.command("cp", self, filepath.Join(check, "systemd.test"))
	m.command("env", "CGO_ENABLED=0", "go", "test", "-c", "-o", filepath.Join(check, "hostcgroup.test"), "../../libvm/hostcgroup")
	m.command("mke2fs", "-q", "-t", "ext4", "-L", "check", "-d", check, m.path("check.img"), "256M")
}

// run has the machine boot, test, boot once more, test and power off. It logs what the tests print, and returns it.
func (m machine) run() string {
	t := m.t
	t.Helper()
	khz, err := tsc.Measure()
	if err != nil {
		t.Fatal(err)
	}
	qemu, err := parts.FindQEMU(parts.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), outerLimit)
	defer cancel()
	c := exec.CommandContext(ctx, qemu,
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off,i8042=off,graphics=off,smm=off",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4G",
		"-kernel", m.path("vmlinuz"), "-initrd", m.path("initrd.img"),
		"-append", fmt.Sprintf("root=/dev/vda console=hvc0 panic=-1 mitigations=off systemd.journald.forward_to_console=1 tsc=reliable tsc_early_khz=%d no_timer_check random.trust_cpu=on", khz),
		"-drive", "if=none,id=root,format=raw,cache=unsafe,file="+m.path("root.img"), "-device", "virtio-blk-pci,drive=root",
		"-drive", "if=none,id=check,format=raw,readonly=on,file="+m.path("check.img"), "-device", "virtio-blk-pci,drive=check",
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=console,path="+m.path("console"), "-device", "virtconsole,chardev=console",
		"-chardev", "file,id=results,path=/dev/stdout", "-device", "virtserialport,chardev=results,name=results", // not stdio: at the end of stdin that is closed
		"-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=entropy")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr, results strings.Builder
	c.Stderr = &stderr
	lines, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(lines); s.Scan(); {
		t.Logf("%4.0f s: %s", time.Since(begin).Seconds(), s.Text())
		fmt.Fprintf(&results, "\n%s", s.Text())
	}
	if err := c.Wait(); err != nil || ctx.Err() != nil {
		t.Errorf("QEMU: %v %v %s", err, ctx.Err(), &stderr)
	}
	return results.String()
}
