package main

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// Types and flags of yamux frames. The header is a version, a type, flags (2 bytes), a stream (4) and a length (4).
const (
	typeData byte = iota
	typeWindow
	typePing
	typeGoAway
)

const (
	flagSYN uint16 = 1 << iota
	flagACK
	flagFIN
	flagRST
)

const (
	headerSize    = 12
	initialWindow = 256 << 10
	chunk         = 64 << 10
)

func header(kind byte, flags uint16, stream, length uint32) []byte {
	h := []byte{0, kind}
	h = binary.BigEndian.AppendUint16(h, flags)
	h = binary.BigEndian.AppendUint32(h, stream)
	return binary.BigEndian.AppendUint32(h, length)
}

// A session is the guest's end of a yamux session.
type session struct {
	port *port
	// deaf stops the reader for good.
	deaf atomic.Bool

	writing sync.Mutex // a frame is written whole

	mu      sync.Mutex
	changed *sync.Cond // windows and ends
	over    bool
	streams map[uint32]*stream
}

// A stream is one that the host has opened.
type stream struct {
	session *session
	id      uint32
	in      []byte // what has come of the request
	asked   bool   // the request is complete
	window  uint32 // what the host takes
	greeted bool   // the first frame has been sent
	ended   bool   // the host has reset it
}

func newSession(p *port) *session {
	s := &session{port: p, streams: map[uint32]*stream{}}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// read handles frames until the host has gone. It calls opened for each new stream, and asked with each complete request.
func (s *session) read(opened func(*stream), asked func(*stream, guestproto.Request)) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.over = true
		s.changed.Broadcast()
	}()
	head := make([]byte, headerSize)
	for {
		for s.deaf.Load() {
			time.Sleep(time.Hour) // nothing else may be awake: Go ends a program of which that is so for good
		}
		if _, err := io.ReadFull(s.port, head); err != nil {
			return
		}
		kind, flags := head[1], binary.BigEndian.Uint16(head[2:])
		id, length := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])
		if kind == typePing && flags&flagSYN != 0 {
			s.write(header(typePing, flagACK, 0, length))
		}
		if kind != typeData && kind != typeWindow {
			continue
		}
		st := s.stream(id, flags, opened)
		if kind == typeWindow {
			s.mu.Lock()
			st.window += length
			s.changed.Broadcast()
			s.mu.Unlock()
			continue
		}
		if length == 0 {
			continue
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(s.port, data); err != nil {
			return
		}
		st.grant(length)
		if req, ok := st.request(data); ok {
			go asked(st, req)
		}
	}
}

func (s *session) stream(id uint32, flags uint16, opened func(*stream)) *stream {
	s.mu.Lock()
	st, known := s.streams[id]
	if !known {
		st = &stream{session: s, id: id, window: initialWindow}
		s.streams[id] = st
	}
	if flags&flagRST != 0 {
		st.ended = true
		s.changed.Broadcast()
	}
	s.mu.Unlock()
	if !known {
		opened(st)
	}
	return st
}

// request collects data until a request is complete. What comes after it is thrown away.
func (st *stream) request(data []byte) (req guestproto.Request, ok bool) {
	if st.asked {
		return req, false
	}
	st.in = append(st.in, data...)
	op, rest, ok := cutFrame(st.in)
	if !ok {
		return req, false
	}
	body, _, ok := cutFrame(rest)
	if !ok {
		return req, false
	}
	st.asked, st.in = true, nil
	return guestproto.Request{Op: guestproto.Op(op), Body: body}, true
}

func cutFrame(b []byte) (body, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, b, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint32(len(b)-4) < n {
		return nil, b, false
	}
	return b[4 : 4+n], b[4+n:], true
}

// write puts bytes on the port as they are.
func (s *session) write(b []byte) {
	s.writing.Lock()
	defer s.writing.Unlock()
	_, _ = s.port.Write(b) // the host has gone: the reader sees it too
}

// flags are those of the next frame.
func (st *stream) flags() uint16 {
	st.session.mu.Lock()
	defer st.session.mu.Unlock()
	if st.greeted {
		return 0
	}
	st.greeted = true
	return flagACK
}

// grant allows the host more.
func (st *stream) grant(n uint32) { st.session.write(header(typeWindow, st.flags(), st.id, n)) }

// send writes data as the host's window allows it, and says whether all has gone.
func (st *stream) send(data []byte) bool {
	for len(data) > 0 {
		n := st.take(uint32(min(len(data), chunk)))
		if n == 0 {
			return false
		}
		st.push(data[:n])
		data = data[n:]
	}
	return true
}

// take waits for a window, takes at most n of it, and gives zero when there will be none.
func (st *stream) take(n uint32) uint32 {
	s := st.session
	s.mu.Lock()
	defer s.mu.Unlock()
	for st.window == 0 && !st.ended && !s.over {
		s.changed.Wait()
	}
	if st.ended || s.over {
		return 0
	}
	n = min(n, st.window)
	st.window -= n
	return n
}

// push writes data whatever the window is.
func (st *stream) push(data []byte) {
	st.session.write(append(header(typeData, st.flags(), st.id, uint32(len(data))), data...))
}

func (st *stream) close() { st.session.write(header(typeWindow, st.flags()|flagFIN, st.id, 0)) }
func (st *stream) reset() { st.session.write(header(typeWindow, st.flags()|flagRST, st.id, 0)) }

// frame is a reply, or anything in its place, as it goes on a stream.
func frame(text []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

// reply sends what answers a request: nil, a body or an error of the guest's.
func (st *stream) reply(body any) {
	var rep guestproto.Reply
	switch body := body.(type) {
	case nil:
	case *guestproto.Error:
		rep.Error = body
	default:
		rep.Body, _ = json.Marshal(body) // it is one of guestproto's
	}
	text, _ := json.Marshal(rep) // likewise
	st.send(frame(text))
}
