package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/internal/tsc"
)

// A server answers the monitor's requests. It holds the one container.
type server struct {
	children *reaper
	network  *networkState
	dns      *dnsRelay
	handlers map[guestproto.Op]handler
	// filter is the device filter of the groundwork.
	filter []byte
	// booted is when guestinit has started; the zero value where nobody can say.
	booted tsc.Moment

	// syncing is held while sync(2) is under way for flush.
	syncing sync.Mutex

	mu        sync.Mutex
	ground    *groundwork // nil once a create has had it
	container *container  // nil before create
}

func newServer(children *reaper, network *networkState, ground *groundwork, filter []byte) *server {
	s := &server{children: children, ground: ground, filter: filter, network: network, dns: &dnsRelay{}}
	s.handlers = map[guestproto.Op]handler{
		guestproto.OpHello:   handle(s.hello),
		guestproto.OpCreate:  handle(s.create),
		guestproto.OpStart:   handle(s.start),
		guestproto.OpExec:    handle(s.exec),
		guestproto.OpWait:    handle(s.wait),
		guestproto.OpSignal:  handle(s.signal),
		guestproto.OpResize:  handle(s.resize),
		guestproto.OpNetwork: handle(s.configureNetwork),
		guestproto.OpClock:   handle(s.clock),
		guestproto.OpUpdate:  handle(s.update),
		guestproto.OpStats:   handle(s.stats),
		guestproto.OpOOM:     handle(s.awaitOOM),
		guestproto.OpForget:  handle(s.forget),
		guestproto.OpLook:    handle(s.look),
		guestproto.OpFlush:   handle(s.flush),

		guestproto.OpListeners: handle(s.awaitListeners),
	}
	primeJSON(guestproto.StdioRequest{}, guestproto.Reply{}, guestproto.HelloReply{}, guestproto.ClockReply{}, guestproto.WaitReply{})
	return s
}

// handler carries out one kind of request. The reply may be nil.
type handler func(body json.RawMessage) (reply any, err error)

// handle makes a handler from a function that takes its own type of request.
func handle[T any](f func(req *T) (any, error)) handler {
	primeJSON(new(T))
	return func(body json.RawMessage) (any, error) {
		req, err := decode[T](body)
		if err != nil {
			return nil, err
		}
		return f(req)
	}
}

func decode[T any](body json.RawMessage) (*T, error) {
	req := new(T)
	if len(body) > 0 {
		if err := json.Unmarshal(body, req); err != nil {
			return nil, guestproto.Errorf(guestproto.CodeBadRequest, "request body: %v", err)
		}
	}
	return req, nil
}

// primeJSON makes package json look at the types of messages, which it does once
// for each type. guestinit does it here, before the template is saved, so that no
// copy of the template has to.
func primeJSON(messages ...any) {
	for _, m := range messages {
		_, _ = json.Marshal(m) // for what it keeps of the type
	}
}

// serve holds one session after the other over the port: a template is saved
// between two.
func (s *server) serve(port *controlPort) error {
	for {
		if err := port.awaitHost(); err != nil {
			return err
		}
		first, err := port.peek(guestproto.Rehearsal, guestproto.ClockRate)
		if err != nil {
			continue // the host has gone again
		}
		switch first {
		case guestproto.Rehearsal:
			s.answerRehearsal(port)
		case guestproto.ClockRate:
			s.answerClockRate(port)
		default:
			if err := s.hold(port); err != nil {
				return err
			}
			debugf("session ended")
		}
	}
}

// hold holds one session.
func (s *server) hold(conn io.ReadWriteCloser) error {
	session, err := yamux.Server(conn, guestproto.SessionConfig(os.Stderr))
	if err != nil {
		return err
	}
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			_ = session.Close() // it has ended, whatever it says
			return nil
		}
		go s.answer(stream)
	}
}

// answer reads the request that opens a stream and replies. It closes the
// stream, except where raw bytes follow the reply.
func (s *server) answer(stream *yamux.Stream) {
	req, err := guestproto.ReadRequest(stream)
	if err != nil {
		// The other side may come from another build and hear of it only so.
		_ = reply(stream, nil, guestproto.Errorf(guestproto.CodeBadRequest, "protocol version %d: read request: %v", guestproto.Version, err))
		_ = stream.Close()
		return
	}
	debugf("request %s", req.Op)
	switch req.Op {
	case guestproto.OpStdio:
		answerRaw(stream, req.Body, s.attachStdio)
		return
	case guestproto.OpDNS:
		if reply(stream, nil, nil) == nil {
			s.dns.attach(stream)
		}
		return
	case guestproto.OpAccept:
		answerRaw(stream, req.Body, s.acceptClient)
		return
	case guestproto.OpDatagrams:
		answerRaw(stream, req.Body, s.carryDatagrams)
		return
	case guestproto.OpDial:
		answerRaw(stream, req.Body, s.dial)
		return
	}
	defer stream.Close()
	h := s.handlers[req.Op]
	if h == nil {
		_ = reply(stream, nil, guestproto.Errorf(guestproto.CodeBadRequest, "unknown request %q", req.Op))
		return
	}
	body, err := h(req.Body)
	if err := reply(stream, body, err); err != nil {
		debugf("reply to %s: %v", req.Op, err)
	}
}

// reply writes the one frame that answers a request.
func reply(stream *yamux.Stream, body any, err error) error {
	var rep guestproto.Reply
	if err != nil {
		if !errors.As(err, &rep.Error) {
			code := guestproto.CodeInternal
			if errors.Is(err, unix.ENOSPC) {
				code = guestproto.CodeDiskFull
			}
			rep.Error = guestproto.Errorf(code, "%v", err)
		}
		const most = guestproto.MaxReply / 8 // JSON makes a byte six at worst
		if len(rep.Error.Message) > most {
			rep.Error.Message = rep.Error.Message[:most]
		}
	} else if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		rep.Body = raw
	}
	return guestproto.WriteFrame(stream, rep)
}

// theContainer returns the container, or an error before create.
func (s *server) theContainer() (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.container == nil {
		return nil, guestproto.Errorf(guestproto.CodeBadRequest, "no container has been created")
	}
	return s.container, nil
}

func (s *server) process(id string) (*container, *process, error) {
	c, err := s.theContainer()
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(id)
	return c, p, err
}

func (s *server) create(req *guestproto.CreateRequest) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var steps *trace.Recorder
	if req.Trace {
		steps = trace.New(time.Now())
	}
	ground := s.ground
	if s.ground = nil; ground == nil {
		return nil, guestproto.Errorf(guestproto.CodeBadRequest, "the VM has a container already, or has failed to make one")
	}
	c, err := createContainer(s.children, ground, req, steps)
	if err != nil {
		return nil, err
	}
	s.container = c
	if steps == nil {
		return nil, nil
	}
	return guestproto.CreateReply{Steps: steps.Take()}, nil
}

func (s *server) start(req *guestproto.StartRequest) (any, error) {
	c, err := s.theContainer()
	if err != nil {
		return nil, err
	}
	if req.Network != nil {
		if err := s.applyNetwork(req.Network); err != nil {
			return nil, err
		}
	}
	return nil, c.start(req.State)
}

func (s *server) exec(req *guestproto.ExecRequest) (any, error) {
	c, err := s.theContainer()
	if err != nil {
		return nil, err
	}
	pid, err := c.exec(req)
	if err != nil {
		return nil, err
	}
	return &guestproto.ExecReply{Pid: pid}, nil
}

func (s *server) wait(req *guestproto.WaitRequest) (any, error) {
	c, p, err := s.process(req.Process)
	if err != nil {
		return nil, err
	}
	return c.wait(p), nil
}

func (s *server) signal(req *guestproto.SignalRequest) (any, error) {
	c, p, err := s.process(req.Process)
	if err != nil {
		return nil, err
	}
	if req.All {
		return nil, c.signalAll(unix.Signal(req.Signal))
	}
	return nil, p.signal(unix.Signal(req.Signal))
}

func (s *server) resize(req *guestproto.ResizeRequest) (any, error) {
	_, p, err := s.process(req.Process)
	if err != nil {
		return nil, err
	}
	return nil, p.resize(req.Width, req.Height)
}

func (s *server) update(req *guestproto.UpdateRequest) (any, error) {
	c, err := s.theContainer()
	if err != nil {
		return nil, err
	}
	settings, err := cgroupSettings(req.Resources)
	if err != nil {
		return nil, err
	}
	if r := req.Resources; r != nil && r.Memory != nil {
		if err := c.cgroup.checkMemory(r.Memory); err != nil {
			return nil, err
		}
	}
	return nil, c.cgroup.apply(settings)
}

func (s *server) configureNetwork(req *guestproto.Network) (any, error) {
	return nil, s.applyNetwork(req)
}

func (s *server) applyNetwork(n *guestproto.Network) error {
	if err := s.network.apply(n); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if n.DNSRelay {
		return s.dns.listen()
	}
	return nil
}

// answerRaw answers a request whose stream goes on after the reply. What serves it
// replies, unless it returns an error.
func answerRaw[T any](stream *yamux.Stream, body json.RawMessage, serve func(*T, *yamux.Stream) error) {
	req, err := decode[T](body)
	if err == nil {
		err = serve(req, stream)
	}
	if err != nil {
		_ = reply(stream, nil, err)
		_ = stream.Close()
	}
}

func (s *server) attachStdio(req *guestproto.StdioRequest, stream *yamux.Stream) error {
	_, p, err := s.process(req.Process)
	if err != nil {
		return err
	}
	return p.stdio.attach(req.Stream, stream)
}
