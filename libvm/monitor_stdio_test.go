package libvm

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/yamux"

	"github.com/boxlite-oci/boxlite/internal/fakevm"
	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/controlport"
)

// peer is a guest's end of a session, which a test speaks for.
type peer struct {
	*guest
	t       *testing.T
	session *yamux.Session
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	host, vm := fakevm.Connections(t)
	session, err := yamux.Server(vm, guestproto.SessionConfig(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	g, err := dialGuest(host, controlport.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &peer{g, t, session}
}

// accept answers n requests for streams, and returns those by their names.
func (p *peer) accept(n int, reply guestproto.Reply) <-chan map[guestproto.Stream]*yamux.Stream {
	all := make(chan map[guestproto.Stream]*yamux.Stream, 1)
	go func() {
		streams := map[guestproto.Stream]*yamux.Stream{}
		for range n {
			s, err := p.session.AcceptStream()
			if err != nil {
				p.t.Error(err)
				break
			}
			req, err := guestproto.ReadRequest(s)
			if err != nil || req.Op != guestproto.OpStdio {
				p.t.Errorf("request %+v, %v", req, err)
			}
			for _, name := range []guestproto.Stream{guestproto.Stdin, guestproto.Stdout, guestproto.Stderr} {
				if strings.Contains(string(req.Body), `"`+string(name)+`"`) {
					streams[name] = s
				}
			}
			if err := guestproto.WriteFrame(s, reply); err != nil {
				p.t.Error(err)
			}
		}
		all <- streams
	}()
	return all
}

func TestRelay(t *testing.T) {
	p := newPeer(t)
	s := newStreams(t)
	accepted := p.accept(3, guestproto.Reply{})
	r, err := startRelay(p.guest, guestproto.Init, s.Stdio)
	if err != nil {
		t.Fatal(err)
	}
	streams := <-accepted

	// Stdin, and its end.
	if _, err := s.in.WriteString("in"); err != nil {
		t.Fatal(err)
	}
	if err := s.in.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(streams[guestproto.Stdin]); err != nil || string(got) != "in" {
		t.Errorf("stdin = %q, %v", got, err)
	}
	// Stdout, and its end: the host's file is closed, so that its reader sees it.
	large := strings.Repeat("out", copyBytes)
	go func() {
		_, _ = io.WriteString(streams[guestproto.Stdout], large) // shows below
		_ = streams[guestproto.Stdout].Close()
	}()
	if got, err := io.ReadAll(s.out); err != nil || string(got) != large {
		t.Errorf("stdout has %d bytes, %v, want %d", len(got), err, len(large))
	}
	// Stderr, whose reader goes away: the guest hears it.
	if err := s.err.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := streams[guestproto.Stderr].Write([]byte("err")); err != nil {
		t.Fatal(err)
	}
	if n, err := streams[guestproto.Stderr].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the stream of a reader that has gone: %d, %v, want its end", n, err)
	}
	r.drain(nil) // does not wait: both outputs have ended
	if got := r.stdout.written.Load(); got != int64(len(large)) {
		t.Errorf("%d bytes are counted, want %d", got, len(large))
	}
}

// Without stdin, as with /dev/null, there is no such stream; a guest that refuses the
// others is an error.
func TestRelayRefused(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	s := newStreams(t)
	stdio := pipes(null, s.Stdout, s.Stderr)
	if stdio.Stdin != nil || pipes(s.Stdin, s.Stdout, s.Stderr).Stdin != s.Stdin {
		t.Errorf("stdin = %v, want none for /dev/null alone", stdio.Stdin)
	}
	p := newPeer(t)
	refused := p.accept(2, guestproto.Reply{Error: guestproto.Errorf(guestproto.CodeNoProcess, "refused")})
	if _, err := startRelay(p.guest, "exec1", stdio); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("startRelay = %v", err)
	}
	<-refused
}

// A stdin whose process has ended leaves what comes then to others who read the file.
func TestReadUnless(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	over, inputOver, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	r.Fd() // blocking from here on, as what a monitor receives
	b := make([]byte, 10)
	_, _ = w.WriteString("first") // to a pipe that has room
	if n, err := readUnless(over, r, b); string(b[:n]) != "first" || err != nil {
		t.Fatalf("readUnless = %q, %v, want first", b[:n], err)
	}
	ended := make(chan error)
	go func() {
		_, err := readUnless(over, r, make([]byte, 10))
		ended <- err
	}()
	if err := inputOver.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("readUnless under way = %v, want EOF", err)
	}
	_, _ = w.WriteString("next")
	if n, err := readUnless(over, r, b); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("readUnless afterwards = %q, %v, want EOF", b[:n], err)
	}
	if n, err := r.Read(b); string(b[:n]) != "next" || err != nil {
		t.Errorf("left in the file: %q, %v, want next", b[:n], err)
	}
}
