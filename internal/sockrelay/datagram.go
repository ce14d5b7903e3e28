package sockrelay

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MaxDatagram bounds a datagram, in bytes. The kernel's own bound is that of a sender's
// buffer, some 200 KiB.
const MaxDatagram = 128 << 10

// DatagramHeader is the size of what stands before a datagram in the stream: its
// length, and the ids of who sent it.
const DatagramHeader = 12

// PutDatagramHeader makes b, whose first DatagramHeader bytes are free, a datagram as
// it goes over the stream.
func PutDatagramHeader(b []byte, uid, gid uint32) {
	binary.BigEndian.PutUint32(b, uint32(len(b)-DatagramHeader))
	binary.BigEndian.PutUint32(b[4:], uid)
	binary.BigEndian.PutUint32(b[8:], gid)
}

// ReadDatagram reads a datagram into buf, which has room for MaxDatagram, and who sent
// it. The error matches ErrForm, or is the stream's.
func ReadDatagram(stream io.Reader, buf []byte) (n int, uid, gid uint32, err error) {
	var head [DatagramHeader]byte
	if _, err := io.ReadFull(stream, head[:]); err != nil {
		return 0, 0, 0, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxDatagram {
		return 0, 0, 0, fmt.Errorf("%w: a datagram of %d bytes", ErrForm, size)
	}
	_, err = io.ReadFull(stream, buf[:size])
	return int(size), binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:]), err
}
