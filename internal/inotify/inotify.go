// Package inotify reads what an inotify instance gives (inotify(7)).
package inotify

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// BufferSize has room for more than 200 events with the longest names.
const BufferSize = 64 << 10

// Event is one of the kernel's (struct inotify_event).
type Event struct {
	Watch        int // its descriptor; -1 with IN_Q_OVERFLOW
	Mask, Cookie uint32
	Name         string
}

// ErrCut is returned for bytes that are not whole events. The kernel gives no such.
var ErrCut = errors.New("inotify: an event is cut off")

// Next takes the first event off bytes that were read from an instance.
func Next(b []byte) (e Event, rest []byte, err error) {
	if len(b) < unix.SizeofInotifyEvent {
		return e, nil, ErrCut
	}
	order := binary.NativeEndian
	end := unix.SizeofInotifyEvent + uint64(order.Uint32(b[12:]))
	if end > uint64(len(b)) {
		return e, nil, ErrCut
	}
	name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:end], []byte{0}) // it is padded
	e = Event{int(int32(order.Uint32(b))), order.Uint32(b[4:]), order.Uint32(b[8:]), string(name)}
	return e, b[end:], nil
}
