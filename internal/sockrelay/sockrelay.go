// Package sockrelay carries the connection of a unix socket over a stream. Each side of
// the VM's boundary has one end: guestinit that of the client, the monitor that of the
// server. Both do the same.
//
// A stream holds chunks, each way. A chunk is its length in 4 bytes, big-endian, and
// as many bytes. An empty chunk says that the socket's peer writes no more: it has
// called shutdown(2). The end of the stream says that the peer has gone, and neither
// reads nor writes.
//
// Datagrams go one way, each as one chunk behind its sender (Datagram).
package sockrelay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxChunk bounds a chunk of a connection, in bytes.
const MaxChunk = 64 << 10

// ErrTooLarge is matched by the error of a chunk or datagram beyond its bound.
var ErrTooLarge = errors.New("beyond the bound")

// header is the size of a chunk's length.
const header = 4

// buffers are those of the ends that have something to say: a connection that is idle
// has none.
var buffers = sync.Pool{New: func() any { return new([header + MaxChunk]byte) }}

// Join carries a connection over a stream until both of its ends have gone, or the
// stream has failed. It closes both. The error is not nil if the other side has broken
// the form of the stream.
func Join(conn *net.UnixConn, stream io.ReadWriteCloser) error {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		send(stream, conn)
		_ = stream.Close() // says that the peer has gone; the stream may have failed
	}()
	err := receive(conn, stream)
	_ = conn.Close() // there is nobody whose bytes it could lose
	if err != nil {
		_ = stream.Close() // likewise
	}
	<-sent
	return err
}

// send puts what conn's peer writes into the stream. It returns when the peer has gone,
// conn is closed or the stream has failed.
func send(stream io.Writer, conn *net.UnixConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	for {
		buf, n, err := readSome(raw)
		if n > 0 {
			binary.BigEndian.PutUint32(buf[:], uint32(n))
			_, err = stream.Write(buf[:header+n])
		}
		if buf != nil {
			buffers.Put(buf)
		}
		if err != nil {
			return
		}
		if n == 0 {
			break
		}
	}
	if hungUp(raw, false) {
		return
	}
	if _, err := stream.Write(make([]byte, header)); err != nil {
		return
	}
	hungUp(raw, true)
}

// readSome waits until there is something to read, and only then takes a buffer. It
// leaves room for the header. Nothing read is the end.
func readSome(raw syscall.RawConn) (buf *[header + MaxChunk]byte, n int, err error) {
	waitErr := raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[header + MaxChunk]byte)
		for n, err = unix.Read(int(fd), buf[header:]); errors.Is(err, unix.EINTR); {
			n, err = unix.Read(int(fd), buf[header:])
		}
		if errors.Is(err, unix.EAGAIN) {
			buffers.Put(buf)
			return false
		}
		return true
	})
	if waitErr != nil {
		return nil, 0, waitErr
	}
	return buf, max(n, 0), err
}

// hungUp says whether the peer has closed its socket, or waits until it has. A peer
// that only writes no more has not. Its error is for the end of conn.
func hungUp(raw syscall.RawConn, wait bool) (gone bool) {
	err := raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP comes unasked
		_, err := unix.Poll(fds, 0)
		gone = err != nil && !errors.Is(err, unix.EINTR) || fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		return gone || !wait
	})
	return gone || err != nil
}

// receive gives conn's peer what comes from the stream, until its end. Of a peer that
// does not take it any more, the rest is dropped: it has gone, which send says.
func receive(conn *net.UnixConn, stream io.Reader) error {
	taken := true
	for {
		var head [header]byte
		if _, err := io.ReadFull(stream, head[:]); err != nil {
			return nil // the end, or a failure of the stream's, which shows elsewhere
		}
		size := binary.BigEndian.Uint32(head[:])
		switch {
		case size > MaxChunk:
			return fmt.Errorf("chunk of %d bytes: %w of %d", size, ErrTooLarge, MaxChunk)
		case size == 0:
			_ = conn.CloseWrite() // who has gone does not miss it
			continue
		}
		buf := buffers.Get().(*[header + MaxChunk]byte)
		_, err := io.ReadFull(stream, buf[:size])
		if err == nil && taken {
			_, writeErr := conn.Write(buf[:size])
			taken = writeErr == nil
		}
		buffers.Put(buf)
		if err != nil {
			return nil
		}
	}
}

// MaxDatagram bounds a datagram, in bytes. The kernel's own bound is that of a sender's
// buffer, some 200 KiB.
const MaxDatagram = 128 << 10

// DatagramHeader is the size of what stands before a datagram in the stream.
const DatagramHeader = 12

// PutDatagramHeader makes b, whose first DatagramHeader bytes are free, a datagram as
// it goes over the stream.
func PutDatagramHeader(b []byte, uid, gid uint32) {
	binary.BigEndian.PutUint32(b, uint32(len(b)-DatagramHeader))
	binary.BigEndian.PutUint32(b[4:], uid)
	binary.BigEndian.PutUint32(b[8:], gid)
}

// ReadDatagram reads a datagram and who sent it. The buffer has room for MaxDatagram.
func ReadDatagram(stream io.Reader, buf []byte) (n int, uid, gid uint32, err error) {
	var head [DatagramHeader]byte
	if _, err := io.ReadFull(stream, head[:]); err != nil {
		return 0, 0, 0, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxDatagram {
		return 0, 0, 0, fmt.Errorf("datagram of %d bytes: %w of %d", size, ErrTooLarge, MaxDatagram)
	}
	_, err = io.ReadFull(stream, buf[:size])
	return int(size), binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:]), err
}
