package lockdown

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
	"testing"

	"golang.org/x/sys/unix"
)

const lockedVar = "LOCKDOWN_TEST"

// TestMain is also the process that is locked down, which cannot be the one that runs the tests. Built with cgo, as for
// the race detector, it could not be.
func TestMain(m *testing.M) {
	if os.Getenv(lockedVar) == "" {
		os.Exit(m.Run())
	}
	if err := lockedDown(os.Getenv(lockedVar)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Print("locked down")
}

// lockedDown tries what shall work and what shall not.
func lockedDown(dir string) error {
	file, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := Enter(unix.CAP_KILL); err != nil {
		return fmt.Errorf("enter: %w", err)
	}
	done := make(chan error)
	go func() { done <- tries(dir, file) }() // another thread than Enter's, perhaps
	return <-done
}

func tries(dir string, file *os.File) error {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return fmt.Errorf("read a file: %w", err)
	}
	for _, want := range []string{"CapEff:\t%s", "CapPrm:\t%s", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		caps := "0000000000000000"
		if os.Geteuid() == 0 {
			caps = "0000000000000020"
		}
		if want = strings.Replace(want, "%s", caps, 1); !bytes.Contains(status, []byte(want)) {
			return fmt.Errorf("status has no %q: %s", want, status)
		}
	}
	if _, err := file.WriteString("written"); err != nil {
		return fmt.Errorf("write to what was open: %w", err)
	}
	if err := unix.Sysinfo(new(unix.Sysinfo_t)); err != nil {
		return fmt.Errorf("sysinfo: %w", err)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	_ = conn.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	_ = w.Close()
	if _, err := io.ReadAll(r); err != nil {
		return fmt.Errorf("read a pipe: %w", err)
	}
	refused := map[string]error{
		"write a file":          os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
		"make a file":           os.WriteFile(filepath.Join(dir, "new"), nil, 0o600),
		"list a directory":      second(os.ReadDir(dir)),
		"remove a file":         os.Remove(filepath.Join(dir, "file")),
		"execute":               exec.Command("/bin/true").Run(),
		"unshare":               unix.Unshare(unix.CLONE_NEWUSER),
		"mount":                 unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		"a raw packet socket":   second(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)),
		"trace":                 unix.PtraceAttach(os.Getppid()),
		"change the host name":  unix.Sethostname([]byte("x")),
		"change the root":       unix.Chroot("/"),
		"become somebody else":  unix.Setresuid(1, 1, 1),
		"a user namespace":      second(unix.Open("/proc/self/uid_map", unix.O_WRONLY, 0)),
		"another's memory":      second(os.OpenFile("/proc/self/mem", os.O_RDWR, 0)),
		"load a BPF program":    third(unix.Syscall(unix.SYS_BPF, 5, 0, 0)),
		"a ring of io_uring":    third(unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)),
		"clone with namespaces": third(unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)),
	}
	var errs []error
	for what, err := range refused {
		if err == nil {
			errs = append(errs, fmt.Errorf("%s: it works", what))
		}
	}
	return errors.Join(errs...)
}

func second[T any](_ T, err error) error { return err }

func third(_, _ uintptr, errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func TestEnter(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A program without cgo, as boxlite is.
	program := filepath.Join(dir, "lockdown.test")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), lockedVar+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "locked down" {
		t.Errorf("locked down: %v: %s", err, out)
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "file")); string(text) != "written" {
		t.Errorf("the open file has %q", text)
	}
}
