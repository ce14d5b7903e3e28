package libvm

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/fakevm"
	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// serveControl is a monitor's socket, at which each request is answered by do.
func serveControl(t *testing.T, do func(*net.UnixConn)) (dir string) {
	t.Helper()
	dir = t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := fdpass.Listen(d, socketFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			do(conn)
			_ = conn.Close()
		}
	}()
	return dir
}

// Descriptors arrive with the request, as they were.
func TestControlPassesDescriptors(t *testing.T) {
	s := newStreams(t)
	got := make(chan controlRequest, 1)
	dir := serveControl(t, func(conn *net.UnixConn) {
		req, files, err := receiveRequest(conn)
		if err != nil || len(files) != 2 {
			t.Errorf("receiveRequest = %v, %v", files, err)
			return
		}
		_, _ = files[1].WriteString("from the monitor\n")
		fdpass.CloseAll(files)
		got <- req
		_ = controlReply{}.send(conn)
	})
	want := controlRequest{Op: controlExec, Exec: &execParams{Process: &specs.Process{Args: []string{"x"}}, Cgroup: "below"}}
	conn, _, err := dialControl(dir, want, s.Stdin, s.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wantLine(t, s.out, "from the monitor")
	if req := <-got; req.Op != want.Op || req.Exec.Cgroup != "below" || req.Exec.Process.Args[0] != "x" {
		t.Errorf("request = %+v, want %+v", req, want)
	}
}

// What becomes of a request whose monitor does not answer as it should. No connection
// stays open.
func TestControlWithoutAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*net.UnixConn)
		want error
		text string
	}{
		"closed at once": {func(*net.UnixConn) {}, ErrVMLost, ""},
		"closed after the request": {func(conn *net.UnixConn) {
			_, files, _ := receiveRequest(conn)
			fdpass.CloseAll(files)
		}, ErrVMLost, "stats: "},
		"half a reply": {func(conn *net.UnixConn) {
			_, _, _ = receiveRequest(conn)
			_, _ = conn.Write([]byte{0, 0, 0, 9, '{'})
		}, io.ErrUnexpectedEOF, "stats: the monitor: "},
		"a reply too large": {func(conn *net.UnixConn) {
			_, _, _ = receiveRequest(conn)
			_, _ = conn.Write(binary.BigEndian.AppendUint32(nil, guestproto.MaxReply+1))
		}, guestproto.ErrFrameTooLarge, "stats: the monitor: "},
		"a sentinel": {func(conn *net.UnixConn) {
			_, _, _ = receiveRequest(conn)
			_ = controlReply{Error: toControlError(ErrPaused)}.send(conn)
		}, ErrPaused, ErrPaused.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			closed := make(chan error, 1)
			dir := serveControl(t, func(conn *net.UnixConn) {
				c.do(conn)
				_ = conn.CloseWrite()
				_, err := io.Copy(io.Discard, conn) // until the other end has gone
				closed <- err
			})
			_, _, err := dialControl(dir, controlRequest{Op: controlStats})
			if !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), c.text) {
				t.Errorf("dialControl = %v, want %q and %v", err, c.text, c.want)
			}
			if err := <-closed; err != nil && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the command's end: %v", err)
			}
		})
	}
	if _, _, err := dialControl(t.TempDir(), controlRequest{Op: controlStats}); !errors.Is(err, ErrNotRunning) || strings.Contains(err.Error(), "no such file") {
		t.Errorf("without a monitor: %v, want %v", err, ErrNotRunning)
	}
}

// A start takes as long as its hooks, an exec as long as a pause; all else is bounded.
func TestControlDeadline(t *testing.T) {
	for name, c := range map[string]struct {
		req  controlRequest
		want time.Duration // zero for none
	}{
		"start":          {controlRequest{Op: controlStart}, 0},
		"exec":           {controlRequest{Op: controlExec, Exec: &execParams{}}, controlTimeout},
		"exec in pauses": {controlRequest{Op: controlExec, Exec: &execParams{IgnorePaused: true}}, 0},
		"signal":         {controlRequest{Op: controlSignal}, signalTimeout},
		"pause":          {controlRequest{Op: controlPause}, controlTimeout},
	} {
		at := c.req.deadline()
		if at.IsZero() != (c.want == 0) {
			t.Errorf("%s: deadline = %v, want in %v", name, at, c.want)
		}
		if left := time.Until(at); c.want != 0 && (left > c.want || left < c.want-time.Second) {
			t.Errorf("%s: %v are left, want %v", name, left, c.want)
		}
	}
}

// A request that comes in half is no request, and what came beside it is closed by
// whoever answers.
func TestReceiveHalfARequest(t *testing.T) {
	ours, theirs := fakevm.Connections(t)
	s := newStreams(t)
	if err := fdpass.Send(ours, s.Stdout); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write([]byte{0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	if err := ours.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	m := &monitor{}
	if err := m.answer(theirs); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("answer = %v", err)
	}
	s.letGo()
	if n, err := s.out.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the descriptor is open still: %d, %v", n, err)
	}
}

func TestHungUp(t *testing.T) {
	ours, theirs := fakevm.Connections(t)
	if hungUp(theirs) {
		t.Error("an open connection has hung up")
	}
	if _, err := ours.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if hungUp(theirs) {
		t.Error("one that has said something has hung up")
	}
	if _, err := theirs.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = ours.Close()
	if !hungUp(theirs) {
		t.Error("a connection whose other end is closed has not hung up")
	}
}
