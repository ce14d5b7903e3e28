// Package controlport stands between the host's yamux session and the control port
// of a VM, whose guest is hostile. It lets through what an honest guest sends, and
// ends the connection at the first frame that is something else:
//
//   - The host opens every stream. A guest that opens one, or that sends a ping or a
//     go-away, wants the host to work for it.
//   - A stream carries as many bytes towards the host as Allow has said, and none
//     after its end.
//   - What the host sends must be taken in time, unless the VM stands still.
//
// The frames are those of yamux's spec.md, version 0.
package controlport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrViolation is matched by the error that ends the connection when the guest
// sends something that an honest guest does not send, or does not take what the
// host sends.
var ErrViolation = errors.New("the guest broke the control protocol")

// Unlimited is for Allow: the stream's window is the only bound.
const Unlimited = math.MaxInt64

const (
	// sendStep and sendPatience bound how long a guest may take nothing at all. Only
	// steps in which it could have are counted: a host that was stopped as a whole
	// accuses nobody.
	sendStep     = time.Second
	sendPatience = 10 * time.Second
	// maxUnclosed is how many streams that the host is done with the guest may leave
	// open. Each costs the host a KiB.
	maxUnclosed = 1024
	// maxAbandoned is how many of these may be such that the host has given up waiting
	// for. Each costs the host what the guest may still send.
	maxAbandoned = 64
)

// Options of New.
type Options struct {
	// Stopped says whether the VM stands still, and so takes nothing.
	Stopped func() bool
	// Violated is called once, with the first violation. The port is closed by then.
	Violated func(error)
}

// Port is the host's end of a control port. It is the transport of a yamux client.
type Port struct {
	conn net.Conn
	opts Options

	heard atomic.Uint64 // frames

	writing  frames // only Write has it
	reading  frames // only Read has it
	mu       sync.Mutex
	streams  map[uint32]*stream // those that not both sides have closed
	newest   uint32             // highest stream that the host has opened
	unclosed int                // finished, and not closed by the guest
	awaited  int                // of these, the abandoned ones
	ended    bool               // the connection did, by itself
	broken   error
}

// stream is what the port knows of one.
type stream struct {
	left     int64 // bytes that the guest may send yet
	received int64
	finished bool // the host reads no more
	late     bool // the host has given up waiting, and the guest may not know yet
	// Who has said that nothing more will come.
	hostClosed, guestClosed bool
}

// New puts a port before conn, which it owns from then on.
func New(conn net.Conn, opts Options) *Port {
	return &Port{conn: conn, opts: opts, streams: map[uint32]*stream{}}
}

// Heard counts the frames that have come: a guest is alive when the count grows.
func (p *Port) Heard() uint64 { return p.heard.Load() }

// Err is the first violation, or nil.
func (p *Port) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken
}

// Ended says that the connection has ended by itself, as it does when the VM ends.
func (p *Port) Ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// Allow lets the guest send that many more bytes on a stream. On a new stream the
// guest may send none before the first Allow.
func (p *Port) Allow(id uint32, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.streams[id]; s != nil {
		s.left = bytes
	}
}

// Finish says that the host has read the first read bytes of a stream, and reads no
// more. It is a violation if the guest has sent more than that, or sends more
// later.
func (p *Port) Finish(id uint32, read int64) error {
	p.mu.Lock()
	s := p.streams[id]
	if s == nil || s.finished {
		p.mu.Unlock()
		return nil
	}
	s.left, s.finished = 0, true
	var err error
	if s.received > read {
		err = fmt.Errorf("%d bytes behind its reply", s.received-read)
	}
	if !s.guestClosed {
		if p.unclosed++; p.unclosed > maxUnclosed {
			err = fmt.Errorf("%d streams left open", p.unclosed)
		}
	}
	p.mu.Unlock()
	if err != nil {
		return p.Violate(err)
	}
	return nil
}

// Abandon says that the host has given up waiting for a stream's reply. What comes late
// is no violation, as long as it is at most late bytes, and not more than Allow has
// said. It is one if the guest owes too many replies.
func (p *Port) Abandon(id uint32, late int64) error {
	p.mu.Lock()
	s := p.streams[id]
	if s == nil || s.finished || s.guestClosed {
		p.mu.Unlock()
		return nil
	}
	s.left, s.finished, s.late = min(s.left, late), true, true
	p.unclosed++
	p.awaited++
	owed := p.awaited
	p.mu.Unlock()
	if owed > maxAbandoned {
		return p.Violate(fmt.Errorf("%d replies are owed", owed))
	}
	return nil
}

// Violate ends the connection for a violation that the caller has found, and
// returns the error that says so.
func (p *Port) Violate(reason error) error {
	p.mu.Lock()
	first := p.broken == nil
	if first {
		p.broken = fmt.Errorf("%w: %w", ErrViolation, reason)
	}
	err := p.broken
	p.mu.Unlock()
	if first {
		_ = p.conn.Close() // whatever was in it is not wanted
		if p.opts.Violated != nil {
			p.opts.Violated(err)
		}
	}
	return err
}

// Close closes the connection.
func (p *Port) Close() error { return p.conn.Close() }

// Read gives the session what the guest has sent, up to the first violation.
func (p *Port) Read(b []byte) (int, error) {
	n, err := p.conn.Read(b)
	if bad := p.reading.scan(b[:n], p.check); bad != nil {
		return 0, p.Violate(bad)
	}
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.broken != nil {
			return 0, p.broken
		}
		p.ended = true
	}
	return n, err
}

// check judges one frame of the guest's.
func (p *Port) check(f frame) error {
	p.heard.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case f.version != 0:
		return fmt.Errorf("frame of version %d", f.version)
	case f.kind == kindPing:
		return errors.New("a ping")
	case f.kind == kindGoAway:
		return errors.New("a go-away")
	case f.kind > kindGoAway:
		return fmt.Errorf("frame of type %d", f.kind)
	case f.flags&flagSYN != 0:
		return errors.New("it opened a stream")
	case f.flags&^(flagACK|flagFIN|flagRST) != 0:
		return fmt.Errorf("frame with flags %#x", f.flags)
	case f.stream%2 == 0 || f.stream > p.newest:
		return fmt.Errorf("frame for stream %d, which nobody opened", f.stream)
	}
	s := p.streams[f.stream]
	if f.kind == kindData && f.length > 0 {
		switch {
		case s == nil || s.guestClosed:
			return fmt.Errorf("%d bytes on stream %d behind its end", f.length, f.stream)
		case int64(f.length) > s.left:
			return fmt.Errorf("%d bytes on stream %d, at most %d", f.length, f.stream, s.left)
		}
		s.left -= int64(f.length)
		s.received += int64(f.length)
	}
	if s != nil && f.flags&(flagFIN|flagRST) != 0 {
		if s.guestClosed && f.flags&flagRST == 0 {
			return fmt.Errorf("stream %d closed twice", f.stream)
		}
		if !s.guestClosed && s.finished {
			p.unclosed--
			if s.late {
				p.awaited--
			}
		}
		s.guestClosed = true
		p.forget(f.stream, s)
	}
	return nil
}

// forget is called with mu held.
func (p *Port) forget(id uint32, s *stream) {
	if s.hostClosed && s.guestClosed {
		delete(p.streams, id)
	}
}

// note learns of one frame of the host's. What the session sends is trusted.
func (p *Port) note(f frame) error {
	if f.kind > kindWindowUpdate {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.flags&flagSYN != 0 {
		p.newest = max(p.newest, f.stream)
		p.streams[f.stream] = &stream{}
	}
	if s := p.streams[f.stream]; s != nil && f.flags&(flagFIN|flagRST) != 0 {
		s.hostClosed = true
		p.forget(f.stream, s)
	}
	return nil
}

// Write sends what the session has. It waits for as long as the VM stands still,
// and otherwise for sendPatience at most.
func (p *Port) Write(b []byte) (written int, err error) {
	_ = p.writing.scan(b, p.note) // which never fails
	for stuck := time.Duration(0); written < len(b); {
		if err := p.conn.SetWriteDeadline(time.Now().Add(sendStep)); err != nil {
			return written, err
		}
		n, err := p.conn.Write(b[written:])
		written += n
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return written, err
		case n > 0 || p.opts.Stopped != nil && p.opts.Stopped():
			stuck = 0
		default:
			if stuck += sendStep; stuck >= sendPatience {
				return written, p.Violate(fmt.Errorf("it has taken nothing for %s", stuck))
			}
		}
	}
	return written, nil
}

var _ io.ReadWriteCloser = (*Port)(nil)

// The kinds and flags of a frame.
const (
	kindData         = 0
	kindWindowUpdate = 1
	kindPing         = 2
	kindGoAway       = 3

	flagSYN = 1 << 0
	flagACK = 1 << 1
	flagFIN = 1 << 2
	flagRST = 1 << 3
)

// frame is the header of one: of a data frame length is the size of what follows,
// in bytes.
type frame struct {
	version, kind byte
	flags         uint16
	stream        uint32
	length        uint32
}

const headerBytes = 12

// frames finds the headers in a stream of bytes that comes in pieces.
type frames struct {
	header [headerBytes]byte
	have   int    // of the header
	body   uint32 // what is to come before the next header
}

// scan calls look for every header that ends in b. It stops at the first error.
func (s *frames) scan(b []byte, look func(frame) error) error {
	for len(b) > 0 {
		if s.body > 0 {
			n := min(uint64(s.body), uint64(len(b)))
			s.body -= uint32(n)
			b = b[n:]
			continue
		}
		n := copy(s.header[s.have:], b)
		s.have += n
		b = b[n:]
		if s.have < headerBytes {
			return nil
		}
		s.have = 0
		f := frame{
			version: s.header[0], kind: s.header[1], flags: binary.BigEndian.Uint16(s.header[2:]),
			stream: binary.BigEndian.Uint32(s.header[4:]), length: binary.BigEndian.Uint32(s.header[8:]),
		}
		if f.kind == kindData {
			s.body = f.length
		}
		if err := look(f); err != nil {
			return err
		}
	}
	return nil
}
