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

// A server answers the monitor's requests. It holds the containers.
type server struct {
	children *reaper
	network  *networkState
	dns      *dnsRelay
	handlers map[guestproto.Op]handler
	// filter is the device filter of the groundwork.
	filter []byte
	// booted is when guestinit has started; the zero value where nobody can say.
	booted tsc.Moment

	watches watches

	// syncing is held while sync(2) is under way for flush.
	syncing sync.Mutex

	mu         sync.Mutex
	ground     *groundwork // nil once a create has had it
	containers map[string]*container
	// making are the names of members that are being made or removed.
	making map[string]bool
	// members is how many there have been.
	members int
}

func newServer(children *reaper, network *networkState, ground *groundwork, filter []byte) *server {
	s := &server{
		children: children, ground: ground, filter: filter, network: network, dns: &dnsRelay{},
		containers: map[string]*container{}, making: map[string]bool{},
	}
	s.handlers = map[guestproto.Op]handler{
		guestproto.OpHello:   handle(s.hello),
		guestproto.OpCreate:  handleNamed(s.create),
		guestproto.OpStart:   handleIn(s, s.start),
		guestproto.OpExec:    handleIn(s, (*container).answerExec),
		guestproto.OpWait:    handleIn(s, (*container).answerWait),
		guestproto.OpSignal:  handleIn(s, (*container).answerSignal),
		guestproto.OpResize:  handleIn(s, (*container).answerResize),
		guestproto.OpNetwork: handle(s.configureNetwork),
		guestproto.OpClock:   handle(s.clock),
		guestproto.OpUpdate:  handleIn(s, (*container).update),
		guestproto.OpStats:   handleIn(s, (*container).stats),
		guestproto.OpOOM:     handleIn(s, (*container).awaitOOM),
		guestproto.OpForget:  handle(s.forget),
		guestproto.OpLook:    handle(s.look),
		guestproto.OpFlush:   handle(s.flush),
		guestproto.OpFreeze:  handleIn(s, (*container).freeze),
		guestproto.OpRemove:  handleNamed(s.remove),

		guestproto.OpListeners:  handle(s.awaitListeners),
		guestproto.OpWatches:    handle(s.awaitWatches),
		guestproto.OpFileEvents: handle(s.tellWatchers),
	}
	primeJSON(guestproto.StdioRequest{}, guestproto.Reply{}, guestproto.HelloReply{}, guestproto.ClockReply{}, guestproto.WaitReply{})
	return s
}

// handler carries out one kind of request. The reply may be nil.
type handler func(container string, body json.RawMessage) (reply any, err error)

// handle makes a handler from a function that takes its own type of request.
func handle[T any](f func(req *T) (any, error)) handler {
	return handleNamed(func(_ string, req *T) (any, error) { return f(req) })
}

// handleNamed is handle for requests that name a container.
func handleNamed[T any](f func(container string, req *T) (any, error)) handler {
	primeJSON(new(T))
	return func(container string, body json.RawMessage) (any, error) {
		req, err := decode[T](body)
		if err != nil {
			return nil, err
		}
		return f(container, req)
	}
}

// handleIn is handle for requests to a container that has been created.
func handleIn[T any](s *server, f func(c *container, req *T) (any, error)) handler {
	return handleNamed(func(name string, req *T) (any, error) {
		c, err := s.container(name)
		if err != nil {
			return nil, err
		}
		return f(c, req)
	})
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
		answerRaw(stream, req.Body, func(which *guestproto.StdioRequest, stream *yamux.Stream) error {
			return s.attachStdio(req.Container, which, stream)
		})
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
	body, err := h(req.Container, req.Body)
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

// container returns one that has been created.
func (s *server) container(name string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch c := s.containers[name]; {
	case c != nil:
		return c, nil
	case name == guestproto.First:
		return nil, guestproto.Errorf(guestproto.CodeBadRequest, "no container has been created")
	default:
		return nil, guestproto.Errorf(guestproto.CodeNoProcess, "the VM has no container %s", name)
	}
}

func (s *server) create(name string, req *guestproto.CreateRequest) (any, error) {
	var steps *trace.Recorder
	if req.Trace {
		steps = trace.New(time.Now())
	}
	create := s.createFirst
	if name != guestproto.First {
		create = func(req *guestproto.CreateRequest, steps *trace.Recorder) error {
			return s.createMember(name, req, steps)
		}
	}
	if err := create(req, steps); err != nil || steps == nil {
		return nil, err
	}
	return guestproto.CreateReply{Steps: steps.Take()}, nil
}

// createFirst makes the VM's first container, from what was made beforehand.
func (s *server) createFirst(req *guestproto.CreateRequest, steps *trace.Recorder) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ground := s.ground
	if s.ground = nil; ground == nil {
		return guestproto.Errorf(guestproto.CodeBadRequest, "the VM has a container already, or has failed to make one")
	}
	mounted := steps.Begin("mount the share")
	err := mountShare()
	mounted()
	if err != nil {
		return err
	}
	takeOver(req.KernelParameters)
	c, err := createContainer(s.children, ground, req, nil, steps)
	if err != nil {
		return err
	}
	s.containers[guestproto.First] = c
	return nil
}

// start configures the network, which is the VM's, and has the container go.
func (s *server) start(c *container, req *guestproto.StartRequest) (any, error) {
	if req.Network != nil {
		if err := s.applyNetwork(req.Network); err != nil {
			return nil, err
		}
	}
	return nil, c.start(req.State)
}

func (c *container) answerExec(req *guestproto.ExecRequest) (any, error) {
	pid, err := c.exec(req)
	if err != nil {
		return nil, err
	}
	return &guestproto.ExecReply{Pid: pid}, nil
}

func (c *container) answerWait(req *guestproto.WaitRequest) (any, error) {
	p, err := c.process(req.Process)
	if err != nil {
		return nil, err
	}
	return c.wait(p), nil
}

func (c *container) answerSignal(req *guestproto.SignalRequest) (any, error) {
	p, err := c.process(req.Process)
	if err != nil {
		return nil, err
	}
	if req.All {
		return nil, c.signalAll(unix.Signal(req.Signal))
	}
	return nil, p.signal(unix.Signal(req.Signal))
}

func (c *container) answerResize(req *guestproto.ResizeRequest) (any, error) {
	p, err := c.process(req.Process)
	if err != nil {
		return nil, err
	}
	return nil, p.resize(req.Width, req.Height)
}

func (c *container) update(req *guestproto.UpdateRequest) (any, error) {
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

func (s *server) attachStdio(container string, req *guestproto.StdioRequest, stream *yamux.Stream) error {
	c, err := s.container(container)
	if err != nil {
		return err
	}
	p, err := c.process(req.Process)
	if err != nil {
		return err
	}
	return p.stdio.attach(req.Stream, stream)
}
