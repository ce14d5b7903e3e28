package hostsocket

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/sockrelay"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// dialerOf serves one socket in this process, which is not locked down: a thread that has taken another user's ids has
// lost its capabilities.
func dialerOf(t *testing.T, path string, datagram bool, peers plan.HostSockets) *Dialer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root makes mounts, and may be others")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &socket{datagram: datagram, peers: &peers, link: fds[0], sender: -1}
	if _, err := s.open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(s.node) })
	far := os.NewFile(uintptr(fds[1]), "link")
	link, err := net.FileConn(far)
	if err := errors.Join(err, far.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.Close() }) // which ends serve
	go s.serve()
	turn := make(chan *net.UnixConn, 1)
	turn <- link.(*net.UnixConn)
	return &Dialer{links: []chan *net.UnixConn{turn}}
}

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err := errors.Join(err, os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// peer is who has connected last.
func peer(t *testing.T, l *net.UnixListener) (ids string) {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(10 * time.Second))
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		cred, credErr := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ids = fmt.Sprintf("%d:%d", cred.Uid, cred.Gid)
		err = credErr
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// openDir is a directory that everybody may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hostsocket")
	if err := errors.Join(err, os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestDialAs(t *testing.T) {
	mappings := []specs.LinuxIDMapping{{HostID: 1000, Size: 10}}
	for name, c := range map[string]struct {
		peers    plan.HostSockets
		uid, gid uint32
		want     string // empty for ErrRefused
	}{
		"anybody":     {uid: 1234, gid: 77, want: "1234:77"},
		"the user":    {peers: plan.HostSockets{User: &plan.SocketUser{UID: 7, GID: 8}}, want: "7:8"},
		"mapped":      {peers: plan.HostSockets{UIDs: mappings, GIDs: mappings}, uid: 1000, gid: 1009, want: "1000:1009"},
		"root":        {peers: plan.HostSockets{UIDs: mappings, GIDs: mappings}, uid: 0, gid: 1000},
		"beyond":      {peers: plan.HostSockets{UIDs: mappings, GIDs: mappings}, uid: 1010, gid: 1000},
		"other group": {peers: plan.HostSockets{UIDs: mappings, GIDs: mappings}, uid: 1000, gid: 0},
		"no user":     {uid: 0xffffffff, gid: 77}, // to the kernel: as it is
		"no group":    {uid: 1234, gid: 0xffffffff},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(openDir(t), "socket")
			l := listen(t, path)
			d := dialerOf(t, path, false, c.peers)
			conn, err := d.Dial(0, c.uid, c.gid)
			if c.want == "" {
				if !errors.Is(err, ErrRefused) {
					t.Errorf("Dial = %v, want ErrRefused", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := peer(t, l); got != c.want {
				t.Errorf("the server sees %s, want %s", got, c.want)
			}
		})
	}
}

func TestDialAnew(t *testing.T) {
	dir := openDir(t)
	path := filepath.Join(dir, "socket")
	old := listen(t, path)
	old.SetUnlinkOnClose(false)
	d := dialerOf(t, path, false, plan.HostSockets{})
	dial := func() error {
		conn, err := d.Dial(0, 0, 0)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	// The path leads elsewhere, and the old server is there.
	if err := os.Rename(path, path+"-old"); err != nil {
		t.Fatal(err)
	}
	if err := dial(); err != nil {
		t.Errorf("Dial of a socket that was renamed = %v", err)
	}
	_ = old.Close()
	if err := dial(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Dial without a server = %v, want ENOENT", err)
	}
	listen(t, filepath.Join(dir, "other"))
	if err := os.Symlink("other", path); err != nil {
		t.Fatal(err)
	}
	if err := dial(); !errors.Is(err, unix.ELOOP) {
		t.Errorf("Dial of a symbolic link = %v, want ELOOP", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	if err := dial(); err != nil {
		t.Errorf("Dial of the new server = %v", err)
	}
}

func TestSend(t *testing.T) {
	path := filepath.Join(openDir(t), "socket")
	addr := &net.UnixAddr{Name: path, Net: "unixgram"}
	log, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	d := dialerOf(t, path, true, plan.HostSockets{})
	buf := make([]byte, sockrelay.MaxDatagram)
	for range 2 {
		want := bytes.Repeat([]byte("x"), sockrelay.MaxDatagram)
		if err := d.Send(0, 0, 0, want); err != nil {
			t.Fatal(err)
		}
		if n, err := log.Read(buf); err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("%d bytes came, %v, want %d", n, err, len(want))
		}
		// The receiver starts anew.
		_ = log.Close()
		_ = os.Remove(path) // Close has, or not
		if log, err = net.ListenUnixgram("unixgram", addr); err != nil {
			t.Fatal(err)
		}
	}
	_ = log.Close()
}
