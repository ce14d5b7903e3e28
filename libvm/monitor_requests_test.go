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
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/controlport"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// The guest's answer to a request may come after the container's end: whoever
// asked gets it all the same, and only who comes later is refused.
func TestAnswerAfterTheEnd(t *testing.T) {
	host, vm := net.Pipe()
	far, err := yamux.Server(vm, guestproto.SessionConfig(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	m := &monitor{log: slog.New(slog.DiscardHandler), ended: make(chan struct{}), killed: make(chan struct{})}
	if m.guest, err = dialGuest(host, controlport.Options{}); err != nil {
		t.Fatal(err)
	}
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
