package guestproto

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

// frame is a frame as WriteFrame sends it, of a body that need not be JSON.
func frame(body string) []byte { return appendFrame(nil, []byte(body)) }

// FuzzReadRequest is the guest's side: what it reads is what was sent, to the byte.
func FuzzReadRequest(f *testing.F) {
	for _, body := range []any{nil, SignalRequest{Process: "exec1", Signal: 9, All: true}, WaitRequest{}} {
		var wire bytes.Buffer
		if err := WriteRequest(&wire, OpSignal, body); err != nil {
			f.Fatal(err)
		}
		f.Add(wire.Bytes())
	}
	f.Add(append(frame("signal c2"), frame("{}")...))
	f.Add(frame(strings.Repeat("x", maxOp+1)))
	f.Add(append(frame("wait"), 0, 0x80, 0, 1))
	f.Fuzz(func(t *testing.T, wire []byte) {
		in := bytes.NewReader(wire)
		req, err := ReadRequest(in)
		read := wire[:len(wire)-in.Len()]
		if err != nil {
			checkFrameError(t, err, wire)
			return
		}
		if len(req.Op)+len(req.Container) > maxOp || len(req.Body) > MaxRequest {
			t.Errorf("ReadRequest = op of %d bytes, body of %d", len(req.Op), len(req.Body))
		}
		if bytes.HasSuffix(wire[4:4+len(req.Op)+1], []byte(" ")) && req.Container == First {
			return // a name that is empty is not sent
		}
		if sent := appendFrame(frame(string(req.Op.In(req.Container))), req.Body); !bytes.Equal(sent, read) {
			t.Errorf("ReadRequest = %+v of % x, which is sent as % x", req, read, sent)
		}
	})
}

// FuzzCall is the host's side, with a guest that answers anything.
func FuzzCall(f *testing.F) {
	f.Add(frame(`{"body":{"pid":7}}`))
	f.Add(frame(`{"error":{"code":"no-process","message":"gone"}}`))
	f.Add(frame(`{}`))
	f.Add(frame(`{"body":{"pid":1e99}}`))
	f.Add([]byte{0, 4, 0, 1, '{'})
	f.Add([]byte{0, 0, 0, 10, '{', '}'})
	f.Fuzz(func(t *testing.T, wire []byte) {
		in := bytes.NewReader(wire)
		var sent bytes.Buffer
		stream := struct {
			io.Reader
			io.Writer
		}{in, &sent}
		var got ExecReply
		err := Call(stream, OpExec, ExecRequest{ID: "exec1"}, &got)
		req, errSent := ReadRequest(&sent)
		if errSent != nil || req.Op != OpExec || sent.Len() != 0 {
			t.Errorf("Call sent %+v, %v and %d bytes more", req, errSent, sent.Len())
		}
		read := len(wire) - in.Len()
		if read > 4+MaxReply {
			t.Errorf("Call read %d bytes", read)
		}
		var own *Error
		switch {
		case errors.As(err, &own):
			const wider = 3 // a byte that is no UTF-8 becomes U+FFFD
			if n := len(own.Message) + len(own.Code); n > wider*read {
				t.Errorf("an error of %d bytes from a reply of %d", n, read)
			}
		case err != nil:
			checkFrameError(t, err, wire)
		default:
			var rep Reply
			var want ExecReply
			if err := errors.Join(json.Unmarshal(wire[4:read], &rep), json.Unmarshal(rep.Body, &want)); err != nil || got != want || rep.Error != nil {
				t.Errorf("Call = %+v of %q, want %+v, %v", got, wire[4:read], want, err)
			}
		}
	})
}

// checkFrameError says whether wire is what a reader may complain of with err: its
// end, a length beyond the bound, or a body that is no JSON of the right form.
func checkFrameError(t *testing.T, err error, wire []byte) {
	var syntax *json.SyntaxError
	var form *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &syntax), errors.As(err, &form):
	case errors.Is(err, ErrFrameTooLarge):
		if len(wire) < 4 {
			t.Errorf("error %v of %d bytes", err, len(wire))
		}
	default:
		t.Errorf("error %v of % x (length %d)", err, wire, binary.BigEndian.Uint32(append(wire, 0, 0, 0, 0)))
	}
}
