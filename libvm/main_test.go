package libvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/fakevm"
	"github.com/boxlite-oci/boxlite/libvm/self"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// The main thread stays the main goroutine's, as the program's does. Here it also must not
// be one that startIn has join a namespace: /proc/self is the main thread's.
func init() { runtime.LockOSThread() }

// TestMain has the test binary be the monitor, the process of a detached exec, QEMU and
// virtiofsd too.
func TestMain(m *testing.M) {
	fakevm.Main()
	if text := os.Getenv(self.ArgsVar); text != "" {
		if program := os.Getenv(programVar); program != "" {
			panic(unix.Exec(program, os.Args, slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, programVar+"=") })))
		}
		os.Exit(runSelf(text))
	}
	code := m.Run()
	if program := os.Getenv(programVar); program != "" {
		_ = os.RemoveAll(filepath.Dir(program)) // below the machine's directory for such
	}
	os.Exit(code)
}

// programVar names a test binary built without cgo, which the monitor and the process
// of a detached exec have to be (lockdown.Enter).
const programVar = "BOXLITE_UNIT_PROGRAM"

// buildProgram makes that binary, unless this one is such a one.
var buildProgram = sync.OnceValue(func() error {
	info, ok := debug.ReadBuildInfo()
	if ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "CGO_ENABLED", Value: "0"}) {
		return nil
	}
	dir, err := os.MkdirTemp("", "boxlite-unit-")
	if err != nil {
		return err
	}
	program := filepath.Join(dir, "libvm.test")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w: %s", err, out)
	}
	return os.Setenv(programVar, program)
})

func runSelf(text string) int {
	var args []string
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		panic(err)
	}
	file := os.NewFile(3, "sync")
	conn, err := net.FileConn(file)
	if err := errors.Join(err, file.Close(), os.Unsetenv(self.ArgsVar)); err != nil {
		panic(err)
	}
	log := slog.New(slog.DiscardHandler)
	switch sync := conn.(*net.UnixConn); args[0] {
	case "monitor":
		return RunMonitor(sync, log)
	case "member":
		return RunMember(sync, log)
	case "exec-process":
		return RunExec(sync, log)
	case "standby-keeper":
		return vmm.RunKeeper(sync, log)
	}
	return 1
}

// host is a runtime whose VMs are fake, with a bundle.
type host struct {
	*Runtime
	t        *testing.T
	programs fakevm.Programs
	bundle   string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, programs: fakevm.Install(t), bundle: t.TempDir()}
	if err := buildProgram(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	h.Runtime = &Runtime{
		Root: filepath.Join(dir, "state"), Parts: h.programs.Options, Accel: "tcg", TurnFile: filepath.Join(dir, "turns"),
		Log: slog.New(slog.DiscardHandler),
	}
	for _, name := range []string{"proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(h.bundle, "rootfs", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// spec is a container whose process is a command of the fake guest's.
func (h *host) spec(args ...string) *specs.Spec {
	limit := int64(64 << 20)
	return &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"}, Hostname: "unit",
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{
			CgroupsPath: fmt.Sprintf("/boxlite-unit-%d-%s", os.Getpid(), filepath.Base(h.t.Name())),
			Resources:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
		},
	}
}

// streams are a process's stdio, and this side's ends of it.
type streams struct {
	Stdio
	in       *os.File
	out, err *os.File
}

func newStreams(t *testing.T) *streams {
	t.Helper()
	var ends [6]*os.File
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ends[2*i], ends[2*i+1] = r, w
	}
	t.Cleanup(func() {
		for _, f := range slices.Backward(ends[:]) { // writers first: they end who reads
			_ = f.Close() // those that others have closed too
		}
	})
	return &streams{Stdio: Stdio{Stdin: ends[0], Stdout: ends[3], Stderr: ends[5]}, in: ends[1], out: ends[2], err: ends[4]}
}

// letGo closes the process's ends, once it has its own.
func (s *streams) letGo() {
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		_ = f.Close()
	}
}

// create makes a container, which the test's end removes.
func (h *host) create(id string, spec *specs.Spec, io *streams) *Container {
	h.t.Helper()
	c, err := h.Create(id, CreateOptions{Bundle: h.bundle, Spec: spec, Stdio: io.Stdio})
	if err != nil {
		h.t.Fatal(err)
	}
	io.letGo()
	h.t.Cleanup(func() {
		if err := c.Delete(true); err != nil && !errors.Is(err, ErrNotExist) {
			h.t.Error(err)
		}
		_ = c.monitor.Wait() // a second time it is an error
	})
	return c
}

// wantStatus also waits: a monitor's end is not its last word.
func wantStatus(t *testing.T, c *Container, want Status) {
	t.Helper()
	if got := c.Status(); got != want {
		t.Errorf("status = %s, want %s", got, want)
	}
}

// eventually waits for what follows an event that the test cannot see.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// wantLine reads a line of a pipe.
func wantLine(t *testing.T, f *os.File, want string) {
	t.Helper()
	var line strings.Builder
	for b := make([]byte, 1); ; {
		if _, err := f.Read(b); err != nil {
			t.Fatalf("after %q: %v, want %q", line.String(), err, want)
		}
		if b[0] == '\n' {
			break
		}
		line.WriteByte(b[0])
	}
	if line.String() != want {
		t.Errorf("%q came, want %q", line.String(), want)
	}
}
