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
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	lockedVar = "LOCKDOWN_TEST"
	usersVar  = "LOCKDOWN_TEST_USERS" // set for EnterForUsers
)

// TestMain is also the process that is locked down, which cannot be the one that runs the tests. Built with cgo, as for
// the race detector, it could not be.
func TestMain(m *testing.M) {
	if os.Getenv(lockedVar) == "" {
		os.Exit(m.Run())
	}
	test := lockedDown
	if os.Getenv(usersVar) != "" {
		test = lockedDownForUsers
	}
	if err := test(os.Getenv(lockedVar)); err != nil {
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
	watched := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		watched <- errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir(dir), second(unix.InotifyInit1(0)))
	}()
	if err := <-watched; err != nil {
		return fmt.Errorf("watch files: %w", err)
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

// lockedDownForUsers connects to a socket of root's alone as somebody else.
func lockedDownForUsers(dir string) error {
	path := filepath.Join(dir, "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if err := EnterForUsers(unix.CAP_DAC_OVERRIDE, unix.CAP_SETUID, unix.CAP_SETGID); err != nil {
		return fmt.Errorf("enter: %w", err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and no unlock: the thread is another user's
		done <- connectAsUsers(path)
	}()
	if err := <-done; err != nil {
		return err
	}
	for range 2 {
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		err = raw.Control(func(fd uintptr) {
			cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			fmt.Print(cred.Uid, ":", cred.Gid, " ", err, "\n")
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func connectAsUsers(path string) error {
	for _, id := range []uintptr{1234, 5678} {
		const keep = ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id+1, id+1, keep); errno != 0 {
			return fmt.Errorf("setresgid: %w", errno)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, keep); errno != 0 {
			return fmt.Errorf("setresuid: %w", errno)
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	for what, err := range map[string]error{
		"read a file":      second(os.ReadFile("/etc/passwd")),
		"make a file":      os.WriteFile(path+"-new", nil, 0o600),
		"execute":          exec.Command("/bin/true").Run(),
		"take more groups": unix.Setgroups([]int{0}),
		"change the owner": unix.Chown(path, 1, 1),
		"signal another":   unix.Kill(1, 0),
	} {
		if err == nil {
			return fmt.Errorf("%s: it works", what)
		}
	}
	return nil
}

func second[T any](_ T, err error) error { return err }

func third(_, _ uintptr, errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// program is the test's own, built without cgo, as boxlite is.
func program(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	path := filepath.Join(dir, "lockdown.test")
	build := exec.Command("go", "test", "-c", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), lockedVar+"="+dir)
	return cmd
}

func TestEnterForUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may be others")
	}
	cmd := program(t, t.TempDir())
	cmd.Env = append(cmd.Env, usersVar+"=yes")
	out, err := cmd.CombinedOutput()
	if want := "1234:1235 <nil>\n5678:5679 <nil>\nlocked down"; err != nil || string(out) != want {
		t.Errorf("locked down for users: %v: %s, want %s", err, out, want)
	}
}

func TestEnter(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := program(t, dir)
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "locked down" {
		t.Errorf("locked down: %v: %s", err, out)
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "file")); string(text) != "written" {
		t.Errorf("the open file has %q", text)
	}
}
