package guestproto

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/hashicorp/yamux"
)

func TestFrameRoundTrip(t *testing.T) {
	var wire bytes.Buffer
	want := SignalRequest{Process: "exec1", Signal: 15, All: true}
	if err := WriteFrame(&wire, want); err != nil {
		t.Fatal(err)
	}
	if err := WriteFrame(&wire, ResizeRequest{Width: 80, Height: 24}); err != nil {
		t.Fatal(err)
	}
	var got SignalRequest
	if err := ReadFrame(&wire, MaxRequest, &got); err != nil || got != want {
		t.Errorf("ReadFrame = %+v, %v, want %+v", got, err, want)
	}
	var size ResizeRequest
	if err := ReadFrame(&wire, MaxRequest, &size); err != nil || size.Width != 80 {
		t.Errorf("the second frame = %+v, %v", size, err)
	}
	if err := ReadFrame(&wire, MaxRequest, &size); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v, want EOF", err)
	}
}

// A hostile guest announces more than it may send.
func TestFrameBound(t *testing.T) {
	head := make([]byte, 4)
	binary.BigEndian.PutUint32(head, MaxReply+1)
	wire := io.MultiReader(bytes.NewReader(head), neverRead{t})
	if err := ReadFrame(wire, MaxReply, new(Reply)); !errors.Is(err, ErrFrameTooLarge) {
		t.Errorf("a frame beyond the bound: %v, want ErrFrameTooLarge", err)
	}
	truncated := []byte{0, 0, 0, 10, '{', '}'}
	if err := ReadFrame(bytes.NewReader(truncated), MaxReply, new(Reply)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a truncated frame: %v, want ErrUnexpectedEOF", err)
	}
}

type neverRead struct{ t *testing.T }

func (n neverRead) Read([]byte) (int, error) {
	n.t.Error("the body of a frame beyond the bound was read")
	return 0, io.EOF
}

// One side answers as guestinit does, over the multiplexer both sides use.
func TestCall(t *testing.T) {
	host, guest := net.Pipe()
	server, err := yamux.Server(guest, SessionConfig(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := yamux.Client(host, SessionConfig(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const calls = 2
	answered := make(chan struct{})
	defer func() { <-answered }() // before the sessions are closed
	go func() {
		defer close(answered)
		for range calls {
			stream, err := server.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			req, err := ReadRequest(stream)
			if err != nil || req.Op == OpExec && string(req.Body) != `{"id":"exec1","process":null}` {
				t.Errorf("request = %+v, %v", req, err)
			}
			rep := Reply{Body: json.RawMessage(`{"pid":7}`)}
			if req.Op != OpExec {
				rep = Reply{Error: Errorf(CodeBadRequest, "unknown request %q", req.Op)}
			}
			if err := WriteFrame(stream, rep); err != nil {
				t.Error(err)
			}
		}
	}()
	call := func(op Op, reply any) error {
		stream, err := client.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		return Call(stream, op, ExecRequest{ID: "exec1"}, reply)
	}
	var rep ExecReply
	if err := call(OpExec, &rep); err != nil || rep.Pid != 7 {
		t.Errorf("exec = %+v, %v", rep, err)
	}
	var own *Error
	if err := call("dance", nil); !errors.As(err, &own) || own.Code != CodeBadRequest || !strings.Contains(own.Message, "dance") {
		t.Errorf("unknown request: %v", err)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 4, 'n', 'u', 'l', 'l', 1})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var rep Reply
		if err := ReadFrame(bytes.NewReader(wire), 64, &rep); err != nil {
			return
		}
		// What can be read can be written and read again to the same end.
		var again bytes.Buffer
		if err := WriteFrame(&again, rep); err != nil {
			t.Fatal(err)
		}
		var second Reply
		if err := ReadFrame(&again, MaxReply, &second); err != nil {
			t.Fatal(err)
		}
	})
}
