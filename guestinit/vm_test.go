package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// What the tests in a VM need besides root.
const (
	kernelPath  = "../bin/vmlinux-lean"
	busyboxPath = "/usr/bin/busybox"
	bootTimeout = 60 * time.Second
)

var virtiofsdPaths = []string{"/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"}

// buildDir holds what buildInitramfs has made; it is empty before.
var buildDir string

// buildInitramfs builds from this tree, once, for those tests that need it.
var buildInitramfs = sync.OnceValues(func() (path string, err error) {
	if buildDir, err = os.MkdirTemp("", "guestinit-test-"); err != nil {
		return "", err
	}
	build := exec.Command("sh", "-c", `go build -trimpath -o "$0/guestinit" . && go run ../initramfs -o "$0/initramfs.cpio" "$0/guestinit"`, buildDir)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build guestinit: %w\n%s", err, out)
	}
	return filepath.Join(buildDir, "initramfs.cpio"), nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// A vm is a guest with a share, held through guestproto by hand.
type vm struct {
	t       *testing.T
	dir     string // dir/share is the share
	session *yamux.Session
	qemu    *exec.Cmd
	boot    time.Duration // from the start of QEMU to the hello
	// container is the one that requests are about.
	container string
}

// in is the same guest with requests about another container.
func (v *vm) in(container string) *vm {
	other := *v
	other.container = container
	return &other
}

// bootVM boots a guest whose share has a rootfs made of busybox, and says hello.
func bootVM(t *testing.T, extra ...string) *vm {
	t.Helper()
	requireVM(t) // builds, which is no part of the boot
	begin := time.Now()
	v, port := silentVM(t, extra...)
	v.greet(port)
	v.boot = time.Since(begin)
	return v
}

// silentVM is bootVM without a word said on the control port.
func silentVM(t *testing.T, extra ...string) (*vm, net.Conn) {
	t.Helper()
	initramfs := requireVM(t)
	v := &vm{t: t, dir: t.TempDir()}
	makeRootfs(t, filepath.Join(v.dir, "share", "rootfs"))
	v.daemon(firstExisting(t, virtiofsdPaths), "--socket-path="+v.dir+"/fs.sock", "-o", "source="+v.dir+"/share",
		"-o", "cache=auto", "-o", "xattr", "-o", "xattrmap=:map:trusted.:user.virtiofs.:",
		"-o", "announce_submounts", "-o", "sandbox=namespace")
	v.await(v.dir + "/fs.sock")
	v.qemu = v.daemon("qemu-system-x86_64", append([]string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35,memory-backend=mem", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G",
		"-object", "memory-backend-memfd,id=mem,size=1G,share=on",
		"-device", "virtio-serial-pci,disable-legacy=on,id=vs",
		"-chardev", "socket,id=ctl,path=" + v.dir + "/ctl.sock,server=on,wait=off",
		"-device", "virtserialport,chardev=ctl,name=" + guestproto.ControlPort,
		"-chardev", "file,id=con,path=" + v.dir + "/console", "-device", "virtconsole,chardev=con",
		"-chardev", "socket,id=fs,path=" + v.dir + "/fs.sock", "-device", "vhost-user-fs-pci,chardev=fs,tag=" + guestproto.ShareTag,
		"-kernel", kernelPath, "-initrd", initramfs, "-append", "console=hvc0 quiet panic=-1 mitigations=off",
	}, extra...)...)
	conn := v.dial(v.dir + "/ctl.sock")
	t.Cleanup(func() {
		if t.Failed() {
			console, _ := os.ReadFile(v.dir + "/console")
			t.Logf("console:\n%s", console)
		}
	})
	return v, conn
}

// greet begins the session.
func (v *vm) greet(port net.Conn) {
	v.t.Helper()
	session, err := yamux.Client(port, guestproto.SessionConfig(io.Discard))
	if err != nil {
		v.t.Fatal(err)
	}
	v.session = session
	v.t.Cleanup(func() { v.session.Close() })
	var hello guestproto.HelloReply
	v.ok(guestproto.OpHello, guestproto.HelloRequest{
		Version: guestproto.Version, UnixNano: time.Now().UnixNano(), Entropy: bytes.Repeat([]byte{7}, 64), Debug: os.Getenv("GUESTINIT_DEBUG") != "",
	}, &hello)
	v.t.Logf("kernel %s", hello.KernelRelease)
}

// requireVM returns the path of the initramfs.
func requireVM(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("tests in a VM need root (virtiofsd)")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatalf("tests in a VM need QEMU: %v", err)
	}
	firstExisting(t, virtiofsdPaths)
	for path, what := range map[string]string{kernelPath: "the lean kernel (make kernels)", busyboxPath: "busybox-static"} {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("tests in a VM need %s: %v", what, err)
		}
	}
	initramfs, err := buildInitramfs()
	if err != nil {
		t.Fatal(err)
	}
	return initramfs
}

func firstExisting(t *testing.T, paths []string) string {
	t.Helper()
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatalf("none of %v exists", paths)
	return ""
}

// daemon starts a process that ends with the test.
func (v *vm) daemon(name string, args ...string) *exec.Cmd {
	v.t.Helper()
	log := new(bytes.Buffer)
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if v.t.Failed() && log.Len() > 0 {
			v.t.Logf("%s: %s", filepath.Base(name), log)
		}
	})
	return cmd
}

// await waits for a file, such as a socket, which has no event that a test could wait for.
func (v *vm) await(path string) {
	v.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	v.t.Fatalf("%s did not appear", path)
}

// dial connects to a socket that is about to be there.
func (v *vm) dial(path string) net.Conn {
	v.t.Helper()
	v.await(path)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			v.t.Fatal(err)
		}
	}
}

// makeRootfs makes a root file system of busybox.
func makeRootfs(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "root", "home/user"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile(busyboxPath)
	if err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, filepath.Join(dir, "bin/busybox"), busybox, 0o755)
	writeTestFile(t, filepath.Join(dir, "bin/data"), []byte("not a program\n"), 0o644)
	writeTestFile(t, filepath.Join(dir, "bin/broken"), []byte("\x7fELFnot a program\n"), 0o755)
	writeTestFile(t, filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"), 0o644)
	list, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for applet := range strings.FieldsSeq(string(list)) {
		_ = os.Symlink("busybox", filepath.Join(dir, "bin", applet))
	}
}

func writeTestFile(t *testing.T, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
}

// call makes one request on a stream of its own.
func (v *vm) call(op guestproto.Op, body, reply any) error {
	v.t.Helper()
	stream, err := v.session.OpenStream()
	if err != nil {
		return err
	}
	defer stream.Close()
	_ = stream.SetDeadline(time.Now().Add(bootTimeout))
	return guestproto.Call(stream, op.In(v.container), body, reply)
}

// ok is call for requests that must succeed.
func (v *vm) ok(op guestproto.Op, body, reply any) {
	v.t.Helper()
	if err := v.call(op, body, reply); err != nil {
		v.t.Fatalf("%s: %v", op, err)
	}
}

// stdio asks for one of a process's streams.
func (v *vm) stdio(id string, name guestproto.Stream) *yamux.Stream {
	v.t.Helper()
	stream, err := v.session.OpenStream()
	if err != nil {
		v.t.Fatal(err)
	}
	if err := guestproto.Call(stream, guestproto.OpStdio.In(v.container), guestproto.StdioRequest{Process: id, Stream: name}, nil); err != nil {
		v.t.Fatalf("stdio %s: %v", name, err)
	}
	return stream
}

// result is how a process ended and what it had to say.
type result struct {
	guestproto.WaitReply
	stdout, stderr string
}

// collect gives a process its input and returns when it has ended. Stdout and
// stderr of a terminal come together.
func (v *vm) collect(id string, terminal bool, input string) func() result {
	v.t.Helper()
	stdin := v.stdio(id, guestproto.Stdin)
	go func() {
		_, _ = io.WriteString(stdin, input)
		_ = stdin.Close()
	}()
	var out, errOut bytes.Buffer
	outDone, errDone := make(chan struct{}), make(chan struct{})
	stdout := v.stdio(id, guestproto.Stdout)
	go func() { _, _ = io.Copy(&out, stdout); stdout.Close(); close(outDone) }()
	if terminal {
		close(errDone)
	} else {
		stderr := v.stdio(id, guestproto.Stderr)
		go func() { _, _ = io.Copy(&errOut, stderr); stderr.Close(); close(errDone) }()
	}
	return func() (r result) {
		v.t.Helper()
		v.ok(guestproto.OpWait, guestproto.WaitRequest{Process: id}, &r.WaitReply)
		<-outDone
		<-errDone
		r.stdout, r.stderr = out.String(), errOut.String()
		return r
	}
}

// run creates and starts the container and waits for its end.
func (v *vm) run(spec *specs.Spec, input string) result {
	v.t.Helper()
	v.ok(guestproto.OpCreate, guestproto.CreateRequest{ID: "c1", Spec: spec}, nil)
	wait := v.collect(guestproto.Init, spec.Process.Terminal, input)
	v.ok(guestproto.OpStart, guestproto.StartRequest{}, nil)
	return wait()
}

// start creates and starts a container that only waits.
func (v *vm) start(spec *specs.Spec) {
	v.t.Helper()
	v.ok(guestproto.OpCreate, guestproto.CreateRequest{ID: "c1", Spec: spec}, nil)
	v.ok(guestproto.OpStart, guestproto.StartRequest{}, nil)
}

// exec runs a process in the container.
func (v *vm) exec(id string, p *specs.Process, input string) result {
	v.t.Helper()
	v.ok(guestproto.OpExec, guestproto.ExecRequest{ID: id, Process: p}, nil)
	return v.collect(id, p.Terminal, input)()
}

// wantError checks the code and the text of a guest's error.
func wantError(t *testing.T, err error, code guestproto.Code, text string) {
	t.Helper()
	var guest *guestproto.Error
	if !errors.As(err, &guest) || guest.Code != code || !strings.Contains(guest.Message, text) {
		t.Errorf("error = %v (%+v), want code %s, text %q", err, guest, code, text)
	}
}

var dockerCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// shell is a process object for a shell command, with Docker's defaults.
func shell(command string) *specs.Process {
	return &specs.Process{
		Args: []string{"sh", "-c", command},
		Env:  []string{"PATH=/usr/bin:/bin"},
		Cwd:  "/",
		Capabilities: &specs.LinuxCapabilities{
			Bounding: dockerCapabilities, Effective: dockerCapabilities, Permitted: dockerCapabilities,
		},
	}
}

// dockerSpec is a guest spec such as docker run gives, without seccomp.
func dockerSpec(process *specs.Process) *specs.Spec {
	return &specs.Spec{
		Version:  specs.Version,
		Process:  process,
		Root:     &specs.Root{Path: guestproto.ShareDir + "/rootfs"},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Sysctl:        map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
		},
	}
}
