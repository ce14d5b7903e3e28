package guestproto

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// Bounds of one frame's JSON, in bytes. Requests carry whole specs; replies
// carry at most an error text or a container's counters.
const (
	MaxRequest = 8 << 20
	MaxReply   = 256 << 10
)

// ErrFrameTooLarge is returned for a frame beyond the reader's bound. Nothing
// of its body has been read.
var ErrFrameTooLarge = errors.New("frame too large")

// WriteFrame writes v as one frame with a single Write.
func WriteFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	frame := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

// ReadFrame reads one frame of at most limit bytes into v.
func ReadFrame(r io.Reader, limit uint32, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > limit {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrFrameTooLarge, size, limit)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// Call sends one request on a fresh stream and reads its reply into reply,
// which may be nil. An error of the guest's own is an *Error. The stream stays
// open: the caller closes it, or goes on with the raw bytes of OpStdio.
func Call(stream io.ReadWriter, op Op, body, reply any) error {
	req := Request{Op: op}
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		req.Body = raw
	}
	if err := WriteFrame(stream, req); err != nil {
		return fmt.Errorf("send %s: %w", op, err)
	}
	var rep Reply
	if err := ReadFrame(stream, MaxReply, &rep); err != nil {
		return fmt.Errorf("reply to %s: %w", op, err)
	}
	if rep.Error != nil {
		return rep.Error
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(rep.Body, reply); err != nil {
		return fmt.Errorf("reply to %s: %w", op, err)
	}
	return nil
}

// SessionConfig is the yamux configuration of both sides. Keep-alives and
// time-outs are off: a paused VM answers nothing for as long as it is paused,
// and the end of a VM shows as the end of the port.
func SessionConfig(logOutput io.Writer) *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 365 * 24 * time.Hour
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = 365 * 24 * time.Hour
	c.MaxStreamWindowSize = 1 << 20
	c.LogOutput = logOutput
	return c
}
