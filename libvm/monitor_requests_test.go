package libvm

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/controlport"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// The guest's answer to a request may come after the container's end: whoever
// asked gets it all the same, and only who comes later is refused.
func TestAnswerAfterTheEnd(t *testing.T) {
	m, far := withGuest(t)
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	listener, err := fdpass.Listen(d, socketFile)
	if err != nil {
		t.Fatal(err)
	}
	go m.serve(listener)
	ask := func() error {
		conn, _, err := dialControl(dir, controlRequest{Op: controlSignal, Signal: int(unix.SIGTERM)})
		if err == nil {
			err = conn.Close()
		}
		return err
	}

	asked := make(chan error, 1)
	go func() { asked <- ask() }()
	stream, err := far.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	close(m.ended)
	shut := make(chan struct{})
	go func() { m.answering.shut(time.Minute); close(shut) }()
	for !m.answering.isShut() {
		time.Sleep(time.Millisecond)
	}
	if err := ask(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v, want %v", err, ErrNotRunning)
	}
	select {
	case <-shut:
		t.Error("the monitor did not wait for its answer to be sent")
	default:
	}
	if err := guestproto.WriteFrame(stream, guestproto.Reply{}); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err != nil {
		t.Errorf("asked before the end: %v", err)
	}
	<-shut
}

// The command of an exec is told that the VM has ended under the exec before the monitor
// ends: while the guest starts the process, and while the process runs.
func TestExecIsToldOfTheLoss(t *testing.T) {
	for _, under := range []guestproto.Op{guestproto.OpExec, guestproto.OpWait} {
		t.Run(string(under), func(t *testing.T) {
			m, far := withGuest(t)
			lost := make(chan struct{})
			m.lost = lost
			conn, command, err := fdpass.Socketpair()
			if err != nil {
				t.Fatal(err)
			}
			defer command.Close()

			go func() { _ = m.exec(conn, &execParams{Process: &specs.Process{}}, make([]*os.File, 3)) }()
			answerUntil(t, far, under)
			_ = far.Close()
			close(lost)
			m.awaited.shut(time.Minute)
			_ = conn.Close() // as by the monitor's end

			var reply controlReply
			if err := guestproto.ReadFrame(command, guestproto.MaxReply, &reply); err != nil {
				t.Fatal(err)
			}
			told := reply.Error.err()
			if under == guestproto.OpWait {
				var end execEnd
				if err := errors.Join(told, guestproto.ReadFrame(command, guestproto.MaxReply, &end)); err != nil {
					t.Fatal(err)
				}
				told = end.Error.err()
			}
			if !errors.Is(told, ErrVMLost) {
				t.Errorf("the command is told %v, want %v", told, ErrVMLost)
			}
		})
	}
}

// withGuest makes a monitor's own container whose guest is played by the test.
func withGuest(t *testing.T) (m *tenant, guest *yamux.Session) {
	t.Helper()
	host, vm := net.Pipe()
	guest, err := yamux.Server(vm, guestproto.SessionConfig(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = guest.Close() })
	m = newMonitor(slog.New(slog.DiscardHandler)).own
	if m.guest, err = dialGuest(host, controlport.Options{}); err != nil {
		t.Fatal(err)
	}
	return m, guest
}

// answerUntil plays a guest that answers each request until one of that kind has come.
func answerUntil(t *testing.T, guest *yamux.Session, last guestproto.Op) {
	t.Helper()
	for {
		stream, err := guest.AcceptStream()
		var req guestproto.Request
		if err == nil {
			req, err = guestproto.ReadRequest(stream)
		}
		if err == nil && req.Op == last {
			return
		}
		if err == nil {
			err = guestproto.WriteFrame(stream, guestproto.Reply{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A guest whose execs never end their outputs keeps mostLingering of them: the next one
// ends the oldest, and that one alone.
func TestLingeringIsBounded(t *testing.T) {
	host, vm := net.Pipe()
	near, err := yamux.Client(host, guestproto.SessionConfig(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := yamux.Server(vm, guestproto.SessionConfig(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	m := newMonitor(slog.New(slog.DiscardHandler)).own
	var relays []*relay
	var over []chan struct{}
	for range mostLingering + 1 {
		r := &relay{changed: make(chan struct{}, 1)}
		if r.stdout.stream, err = near.OpenStream(); err != nil {
			t.Fatal(err)
		}
		sink, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		go r.copyOut(&r.stdout, sink)
		inputEnd, inputOver, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer inputEnd.Close()
		r.inputOver = inputOver
		done := make(chan struct{})
		before := len(relays)
		go func() { m.linger(r); close(done) }()
		relays, over = append(relays, r), append(over, done)
		for count := 0; count < min(before+1, mostLingering); time.Sleep(time.Millisecond) {
			m.mu.Lock()
			count = len(m.lingering)
			m.mu.Unlock()
		}
	}
	select {
	case <-over[0]:
	case <-time.After(time.Minute):
		t.Fatal("the oldest one goes on")
	}
	for !relays[0].atEnd() { // its copyOut has been told
		<-relays[0].changed
	}
	for i, r := range relays[1:] {
		if r.atEnd() || isOver(over[i+1]) {
			t.Errorf("output %d has ended", i+1)
		}
	}
	close(m.ended)
	_ = near.Close()
	for _, done := range over {
		<-done
	}
}

func isOver(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
