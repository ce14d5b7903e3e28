package guestproto

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
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
	_, err = w.Write(appendFrame(nil, body))
	return err
}

func appendFrame(b, body []byte) []byte {
	b = slices.Grow(b, 4+len(body))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

// ReadFrame reads one frame of at most limit bytes into v.
func ReadFrame(r io.Reader, limit uint32, v any) error {
	body, err := readFrame(r, limit)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

func readFrame(r io.Reader, limit uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFrameTooLarge, size, limit)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r, body)
	return body, err
}

// maxOp bounds the name of an operation with the container's, in bytes.
const maxOp = 32 + 1 + 255

// WriteRequest sends a request with a single Write. A nil body is none.
func WriteRequest(w io.Writer, op Op, body any) (err error) {
	var raw []byte
	if body != nil {
		if raw, err = json.Marshal(body); err != nil {
			return err
		}
	}
	_, err = w.Write(appendFrame(appendFrame(nil, []byte(op)), raw))
	return err
}

// ReadRequest reads what WriteRequest has sent.
func ReadRequest(r io.Reader) (req Request, err error) {
	op, err := readFrame(r, maxOp)
	if err != nil {
		return req, err
	}
	name, container, _ := strings.Cut(string(op), " ")
	req.Op, req.Container = Op(name), container
	req.Body, err = readFrame(r, MaxRequest)
	return req, err
}

// Call sends one request on a fresh stream and reads its reply into reply,
// which may be nil. An error of the guest's own is an *Error. The stream stays
// open: the caller closes it, or goes on with the raw bytes of OpStdio.
func Call(stream io.ReadWriter, op Op, body, reply any) error {
	if err := WriteRequest(stream, op, body); err != nil {
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
