// Package sockrelay carries the connection of a socket over a stream. Each side of the
// VM's boundary has one end: one side that of the client, the other side that of the
// server. Both do the same.
//
// A stream holds chunks, each way. A chunk begins with 4 bytes, big-endian:
//
//	1 to MaxChunk   so many bytes follow, which the socket's peer has written
//	0               the peer writes no more: it has called shutdown(2)
//	creditBit + n   the peer has taken n bytes: the other side may send as many more
//	creditBit       the peer takes no more: it has gone, or called shutdown(2)
//
// The end of the stream says that the peer has gone, and neither reads nor writes.
// Without credit a side has Window bytes under way at most, the 4 of each chunk
// included. So either side needs little memory for a connection whose peer does not
// read, and credit never waits behind bytes that nobody takes.
//
// Datagrams of unix sockets go one way, each behind its length and its sender. Packets of
// UDP go both ways, each behind its length in 2 bytes.
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

const (
	// MaxChunk bounds a chunk, in bytes.
	MaxChunk = 32 << 10
	// Window bounds what is under way in one direction and has not been taken.
	Window = 64 << 10

	creditBit = 1 << 31
	header    = 4
)

// ErrForm is matched by the error for a stream that breaks this package's form.
var ErrForm = errors.New("a relayed socket's stream is malformed")

// Stream is a yamux.Stream. Close ends what this side writes, and Shrink gives back
// the memory of what has been read.
type Stream interface {
	io.ReadWriteCloser
	Shrink()
}

// Conn is a connection that can be carried: a net.UnixConn or net.TCPConn.
type Conn interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// Join carries a connection over a stream until both of its ends have gone, or the
// stream has failed. It closes both. The error matches ErrForm, or is nil.
func Join(conn Conn, stream Stream) error {
	in, out := newInbound(), newBudget()
	var both sync.WaitGroup
	var once sync.Once
	untaken := func() { once.Do(func() { both.Go(func() { refuse(conn) }) }) }
	both.Go(func() {
		send(stream, conn, out)
		_ = stream.Close() // says that the peer has gone; the stream may have failed
		untaken()
	})
	both.Go(func() {
		in.deliver(conn, stream)
		_ = conn.Close() // there is nobody whose bytes it could lose
	})
	err := receive(stream, in, out, untaken)
	in.end()
	out.end()
	if err != nil {
		_ = errors.Join(conn.Close(), stream.Close()) // they are of no use
	}
	both.Wait()
	return err
}

// receive sorts what comes from the stream, until its end. It calls untaken when the other
// side's peer takes no more.
func receive(stream Stream, in *inbound, out *budget, untaken func()) error {
	for {
		var head [header]byte
		if _, err := io.ReadFull(stream, head[:]); err != nil {
			return nil // the end, or a failure of the stream's, which shows elsewhere
		}
		size := binary.BigEndian.Uint32(head[:])
		if size == creditBit {
			untaken()
			continue
		}
		if size&creditBit != 0 {
			if err := out.add(int(size &^ creditBit)); err != nil {
				return err
			}
			continue
		}
		if size > MaxChunk {
			return fmt.Errorf("%w: a chunk of %d bytes", ErrForm, size)
		}
		if err := in.expect(int(size)); err != nil {
			return err
		}
		buf := buffers.Get().(*[header + MaxChunk]byte)
		_, err := io.ReadFull(stream, buf[:size])
		if err == nil && in.put(buf[:size]) {
			stream.Shrink()
		}
		buffers.Put(buf)
		if err != nil {
			return nil
		}
	}
}

// inbound is what has come for the socket's peer.
type inbound struct {
	mu      sync.Mutex
	changed *sync.Cond
	waiting []byte
	cost    int  // of these, with their headers
	size    int  // bytes that have come and that no credit has been given for
	shut    bool // nothing more will come
	told    bool // that to the peer
	ended   bool // with the stream
}

func newInbound() *inbound {
	q := &inbound{}
	q.changed = sync.NewCond(&q.mu)
	return q
}

// costOf is what a chunk counts for.
func costOf(size int) int {
	if size == 0 {
		return 0 // it comes once
	}
	return header + size
}

// expect says whether a chunk of that size may come.
func (q *inbound) expect(size int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size += costOf(size); q.shut || q.size > Window {
		return fmt.Errorf("%w: %d bytes under way, or some behind the end", ErrForm, q.size)
	}
	return nil
}

// put adds a chunk, of which it keeps a copy. It says whether the peer is slow to take
// what comes, so that the stream's own memory is better given back than kept.
func (q *inbound) put(chunk []byte) (slow bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, chunk...)
	q.cost += costOf(len(chunk))
	q.shut = len(chunk) == 0
	q.changed.Signal()
	return q.size > Window/2
}

// next waits for what has come, and says what it counts for. Nothing is the end of
// writing, once, and with ok false the end.
func (q *inbound) next() (bytes []byte, cost int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case len(q.waiting) > 0:
			bytes, q.waiting = q.waiting, nil
			cost, q.cost = q.cost, 0
			return bytes, cost, true
		case q.shut && !q.told:
			q.told = true
			return nil, 0, true
		case q.ended:
			return nil, 0, false
		}
		q.changed.Wait()
	}
}

func (q *inbound) taken(size int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.size -= size
}

func (q *inbound) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.changed.Signal()
}

// deliver gives conn's peer what comes, and the other side credit, until the end. Of a
// peer that does not take it any more, the rest is dropped, and the other side hears it.
func (q *inbound) deliver(conn Conn, stream io.Writer) {
	takes := true
	owed := 0
	for {
		bytes, cost, ok := q.next()
		if !ok {
			return
		}
		if len(bytes) == 0 {
			_ = conn.CloseWrite() // who has gone does not miss it
			continue
		}
		if takes {
			if _, err := conn.Write(bytes); err != nil {
				takes = false
				_, _ = stream.Write(binary.BigEndian.AppendUint32(nil, creditBit)) // a stream that has failed ends all
			}
		}
		if owed += cost; owed >= Window/4 {
			q.taken(owed)
			var credit [header]byte
			binary.BigEndian.PutUint32(credit[:], creditBit|uint32(owed))
			_, _ = stream.Write(credit[:]) // a stream that has failed ends all
			owed = 0
		}
	}
}

// budget is how much may be sent.
type budget struct {
	mu      sync.Mutex
	changed *sync.Cond
	left    int
	ended   bool
}

func newBudget() *budget {
	b := &budget{left: Window}
	b.changed = sync.NewCond(&b.mu)
	return b
}

func (b *budget) add(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left += n; b.left > Window {
		return fmt.Errorf("%w: credit for %d bytes that nobody sent", ErrForm, b.left-Window)
	}
	b.changed.Signal()
	return nil
}

// await waits until something may be sent, and says how much behind a header; zero is
// the end.
func (b *budget) await() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.left <= header && !b.ended {
		b.changed.Wait()
	}
	if b.ended {
		return 0
	}
	return min(b.left-header, MaxChunk)
}

func (b *budget) spend(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left -= n
}

func (b *budget) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.changed.Signal()
}

// buffers are those of the ends that have something to say: a connection that is idle
// has none.
var buffers = sync.Pool{New: func() any { return new([header + MaxChunk]byte) }}

// send puts what conn's peer writes into the stream. It returns when the peer has gone,
// conn is closed or the stream has ended.
func send(stream io.Writer, conn Conn, out *budget) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	for {
		most := out.await()
		if most == 0 {
			return
		}
		buf, n, err := readSome(raw, most)
		if n > 0 {
			out.spend(costOf(n))
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

// refuse has the peer learn, by an error from its next write, that nobody reads what it
// writes. A peer that waits to write, and reads nothing before, would wait for ever. What
// it has not read yet stays there for it, if the connection is a unix socket's. TCP
// cannot say the one without the other.
func refuse(conn Conn) {
	if local, isLocal := conn.(*net.UnixConn); isLocal {
		_ = local.CloseRead()             // the peer may have gone
		_, _ = io.Copy(io.Discard, local) // makes room, by which a waiting peer wakes up
		return
	}
	if n, _ := conn.Read(make([]byte, 1)); n > 0 {
		_ = conn.Close() // with bytes unread, which resets the connection
	}
}

// readSome waits until there is something to read, and only then takes a buffer. It
// leaves room for the header. Nothing read is the end.
func readSome(raw syscall.RawConn, most int) (buf *[header + MaxChunk]byte, n int, err error) {
	waitErr := raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[header + MaxChunk]byte)
		for n, err = unix.Read(int(fd), buf[header:header+most]); errors.Is(err, unix.EINTR); {
			n, err = unix.Read(int(fd), buf[header:header+most])
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
// that only writes no more has not. The end of conn counts as well.
func hungUp(raw syscall.RawConn, wait bool) (gone bool) {
	err := raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP comes unasked
		_, err := unix.Poll(fds, 0)
		gone = err == nil && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		return gone || !wait
	})
	return gone || err != nil
}
