package libvm

import (
	"context"
	"io"
	"os"
	"os/signal"
	"testing"
	"time"

	"github.com/containerd/console"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// terminal is a pty: the user's end, and the one that a program is given.
func terminal(t *testing.T) (user console.Console, tty *os.File) {
	t.Helper()
	user, name, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = user.Close(), tty.Close() })
	if err := user.Resize(console.WinSize{Width: 80, Height: 25}); err != nil {
		t.Fatal(err)
	}
	return user, tty
}

// A terminal's bytes go to the container and back as they are, and it is what it was
// afterwards.
func TestForeground(t *testing.T) {
	h := newHost(t)
	h.NoCgroup = true
	t.Cleanup(func() { signal.Reset() }) // Attach catches them all
	spec := h.spec("cat")
	spec.Process.Terminal, spec.Process.ConsoleSize = true, &specs.Box{Width: 80, Height: 25}
	user, tty := terminal(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	fg, err := NewForeground(spec, "", Stdio{Stdin: tty, Stdout: in, Stderr: tty})
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.Create("terminal", CreateOptions{Bundle: h.bundle, Spec: spec, ConsoleSocket: fg.ConsoleSocket()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Delete(true) }()
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if err := fg.Attach(c); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	const typed = "\x03\x04typed\n" // raw: neither an interrupt nor an end
	if _, err := io.WriteString(user, typed); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(typed))
	if _, err := io.ReadFull(out, got); err != nil || string(got) != typed {
		t.Errorf("the terminal shows %q, %v, want %q", got, err, typed)
	}
	if err := c.Signal(int(unix.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	if status, err := fg.Wait(); err != nil || status != 128+15 {
		t.Errorf("Wait = %d, %v", status, err)
	}
	dir := fg.dir
	if err := fg.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the socket's directory is left")
	}
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal is %+v, %v, and was %+v", after, err, before)
	}
}

// Without a terminal there is nothing to attach; signals reach the container all the
// same.
func TestForegroundWithoutTerminal(t *testing.T) {
	h := newHost(t)
	h.NoCgroup = true
	t.Cleanup(func() { signal.Reset() })
	spec := h.spec("wait")
	s := newStreams(t)
	fg, err := NewForeground(spec, "", s.Stdio)
	if err != nil || fg.ConsoleSocket() != "" {
		t.Fatalf("NewForeground = %+v, %v", fg, err)
	}
	c := h.create("plain", spec, s)
	if err := fg.Attach(c); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status, err := fg.Wait(); err != nil || status != 128+15 {
		t.Errorf("Wait = %d, %v", status, err)
	}
	if err := fg.Close(); err != nil {
		t.Fatal(err)
	}
}

// An exec with a terminal has the caller's own, in raw mode meanwhile.
func TestExecTerminal(t *testing.T) {
	h := newHost(t)
	h.NoCgroup = true
	c := h.create("exectty", h.spec("wait"), newStreams(t))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	user, tty := terminal(t)
	type end struct {
		status guestproto.ExitStatus
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		status, err := c.Exec(ExecOptions{Process: &specs.Process{Args: []string{"cat"}, Terminal: true}, Stdio: Stdio{Stdin: tty, Stdout: tty, Stderr: tty}})
		ended <- end{status, err}
	}()
	eventually(t, "the terminal is raw", func() bool {
		mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		return err == nil && mode.Lflag&unix.ECHO == 0
	})
	const typed = "\x03typed\n"
	if _, err := io.WriteString(user, typed); err != nil {
		t.Fatal(err)
	}
	const shown = "\x03typed\r\n" // a newline is the terminal's affair
	got := make([]byte, len(shown))
	if _, err := io.ReadFull(user, got); err != nil || string(got) != shown {
		t.Errorf("the terminal shows %q, %v, want %q", got, err, shown)
	}
	if err := c.Signal(int(unix.SIGKILL), false); err != nil { // the VM goes, and the exec with it
		t.Fatal(err)
	}
	if e := <-ended; e.status.Signal != int(unix.SIGKILL) {
		t.Errorf("exec = %+v, %v", e.status, e.err)
	}
}

// A container takes a VM that stands by. QEMU and its keeper come into the container's
// cgroup, and are not among the processes that stand for it.
func TestContainerTakesStandbyVM(t *testing.T) {
	h := newHost(t)
	h.TemplateDir = t.TempDir()
	if err := os.Chmod(h.TemplateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	spec := h.spec("wait")
	shape := plan.Shape{Kernel: "lean", MemoryMiB: 192, VCPUs: 1}
	h.Overrides = plan.Overrides{MemoryMiB: shape.MemoryMiB, VCPUs: shape.VCPUs}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	ready, ended := make(chan string, 4), make(chan error, 1)
	go func() { ended <- h.Factory().Standby(ctx, shape, spec, 1, func(key string) { ready <- key }) }()
	var key string
	select {
	case key = <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	c := h.create("taker", spec, newStreams(t))
	if c.Keeper == 0 || c.Template != key {
		t.Fatalf("keeper %d, template %q, want the VM that stood by, of %s", c.Keeper, c.Template, key)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pids, err := c.HostPids()
	if err != nil || len(pids) != 1 || pids[0] != c.Pid {
		t.Errorf("HostPids = %v, %v, want the monitor, %d", pids, err, c.Pid)
	}
	if err := c.Signal(int(unix.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	if status, err := c.Wait(); err != nil || status != 128+15 {
		t.Errorf("Wait = %d, %v", status, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Standby = %v", err)
	}
}
