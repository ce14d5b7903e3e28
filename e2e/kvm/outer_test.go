package kvm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
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

// outerLimit is how long the outer VM may take from start to power off.
const outerLimit = 5 * time.Minute

// An outer is the emulated VM in which KVM works.
type outer struct {
	t    *testing.T
	dir  string // sockets, initramfs
	work string // the share of that name
}

func newOuter(t *testing.T) *outer {
	t.Helper()
	dir, err := os.MkdirTemp("", "bxkvm") // short, for the sockets' sake
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	o := &outer{t: t, dir: dir, work: filepath.Join(dir, WorkTag)}
	if err := os.Mkdir(o.work, 0o755); err != nil {
		t.Fatal(err)
	}
	return o
}

// bundle makes one that the VM has in its share.
func (o *outer) bundle(name string, args ...string) {
	o.t.Helper()
	writeBundle(o.t, filepath.Join(o.work, name), name, args...)
}

// run boots the VM, has it run the steps and returns their results by name when it is off, and the first step in which an
// inner VM was lost, if one was.
func (o *outer) run(steps []Step) (results map[string]Result, lost string) {
	t := o.t
	t.Helper()
	kernel := o.build()
	text, err := json.Marshal(steps)
	if err == nil {
		err = os.WriteFile(filepath.Join(o.work, StepsFile), text, 0o644)
	}
	if err == nil {
		text, err = os.ReadFile("/etc/ld.so.cache")
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(o.work, LinkerCache), text, 0o644)
	}
	var khz int
	if err == nil {
		khz, err = tsc.Measure()
	}
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35,memory-backend=ram,hpet=off,smbus=off,sata=off,usb=off,vmport=off,i8042=off,graphics=off,smm=off",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3G",
		"-object", "memory-backend-memfd,id=ram,share=on,size=3G",
		"-kernel", kernel, "-initrd", filepath.Join(o.dir, "initramfs.cpio"),
		"-append", fmt.Sprintf("console=hvc0 quiet panic=-1 tsc=reliable tsc_early_khz=%d no_timer_check random.trust_cpu=on", khz),
		"-device", "virtio-serial-pci,disable-legacy=on",
		"-chardev", "stdio,id=console,signal=off", "-device", "virtconsole,chardev=console",
		"-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,disable-legacy=on,rng=entropy",
	}
	for tag, source := range map[string]string{UsrTag: "/usr", BinTag: filepath.Dir(boxlitePath(t)), WorkTag: o.work} {
		args = append(args, "-chardev", "socket,id="+tag+",path="+o.share(tag, source), "-device", "vhost-user-fs-pci,chardev="+tag+",tag="+tag)
	}
	found, err := parts.FindQEMU(parts.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.qemu(found, args)
	return o.results(steps)
}

// build fetches the outer VM's kernel, which is quick if the cache has it, and makes its initramfs.
func (o *outer) build() (kernel string) {
	o.t.Helper()
	const prebuilt = "../../bin/prebuilt"
	out, err := exec.Command("../../kernels/prebuilt.sh", "--out", prebuilt).CombinedOutput()
	if err != nil {
		o.t.Fatalf("kernels/prebuilt.sh: %v: %s", err, out)
	}
	script := `go build -trimpath -o "$0/outerinit" ./outerinit &&
		go run ../../initramfs -o "$0/initramfs.cpio" -modules ` + prebuilt + `/modules/ -names outer.modules "$0/outerinit"`
	build := exec.Command("sh", "-c", script, o.dir)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		o.t.Fatalf("outerinit: %v: %s", err, out)
	}
	return prebuilt + "/vmlinux-lean"
}

// share starts a virtiofsd for a directory and returns the path of its socket.
func (o *outer) share(tag, source string) string {
	t := o.t
	t.Helper()
	found, err := parts.FindVirtiofsd(parts.Options{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.dir, tag+".sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	socket, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	args := []string{"--fd=3", "-o", "source=" + source, "-o", "cache=always", "-o", "sandbox=namespace", "-o", "log_level=err"}
	if found.Dialect == parts.DialectRust {
		args = []string{"--fd=3", "--shared-dir", source, "--cache=always", "--sandbox=namespace", "--log-level=error"}
	}
	c := exec.Command(found.Path, args...)
	c.ExtraFiles = []*os.File{socket}
	log := new(strings.Builder)
	c.Stdout, c.Stderr = log, log
	o.start(c)
	t.Cleanup(func() {
		_ = c.Process.Kill() // it has usually ended with QEMU
		_ = c.Wait()
		if t.Failed() && log.Len() > 0 {
			t.Logf("virtiofsd %s: %s", source, log)
		}
	})
	return path
}

// start starts a process that ends when the test's does.
func (o *outer) start(c *exec.Cmd) {
	o.t.Helper()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		o.t.Fatal(err)
	}
}

// qemu runs the VM to its end and logs the console with times.
func (o *outer) qemu(path string, args []string) {
	t := o.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), outerLimit)
	defer cancel()
	c := exec.CommandContext(ctx, path, args...)
	stderr := new(strings.Builder)
	c.Stderr = stderr
	console, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	o.start(c)
	var lines strings.Builder
	read := func(r io.Reader) {
		for s := bufio.NewScanner(r); s.Scan(); {
			fmt.Fprintf(&lines, "%6.2f %s\n", time.Since(begin).Seconds(), strings.TrimRight(s.Text(), "\r"))
		}
	}
	read(console)
	err = c.Wait()
	t.Logf("console of the outer VM, seconds since the start of QEMU:\n%s%6.2f off", &lines, time.Since(begin).Seconds())
	if err != nil || ctx.Err() != nil {
		t.Fatalf("QEMU of the outer VM: %v %v %s", err, ctx.Err(), stderr)
	}
}

func (o *outer) results(steps []Step) (byName map[string]Result, lost string) {
	o.t.Helper()
	text, err := os.ReadFile(filepath.Join(o.work, ResultsFile))
	if err != nil {
		o.t.Fatal(err)
	}
	var list []Result
	if err := json.Unmarshal(text, &list); err != nil {
		o.t.Fatal(err)
	}
	byName = map[string]Result{}
	for _, r := range list {
		byName[r.Name] = r
		said := r.Stdout + r.Stderr
		if strings.Contains(said, panicked) {
			o.t.Errorf("%s: %s", r.Name, said)
		}
		if lost == "" && (r.Stalled() || strings.Contains(said, reset)) {
			lost = r.Name
		}
	}
	if lost == "" && len(list) != len(steps) {
		o.t.Errorf("%d of %d steps have run", len(list), len(steps))
	}
	return byName, lost
}
