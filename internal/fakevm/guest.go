package fakevm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/tsc"
)

// A process of the fake guest's container is one of these commands. Signals that end
// most processes end it, and it says "signal N" on stdout of others.
//
//	cat        copies stdin to stdout, until its end
//	exit N     ends with status N
//	oom        is killed for lack of memory
//	wait       waits
const (
	commandCat  = "cat"
	commandExit = "exit"
	commandOOM  = "oom"
	commandWait = "wait"
)

// guest holds containers.
type guest struct {
	mu         sync.Mutex
	containers map[string]*container
}

// container is one of them.
type container struct {
	mu        sync.Mutex
	processes map[string]*process
	limit     uint64 // of memory, as the last update has it
	kills     uint64
	killed    chan struct{} // closed and replaced with each kill
}

// process is one of a container's.
type process struct {
	args    []string
	streams map[guestproto.Stream]chan net.Conn
	signals chan int
	ended   chan struct{}
	end     guestproto.WaitReply // once ended is closed
}

// Guest is guestinit at its end of the control port, until that is closed.
func Guest(conn net.Conn) {
	beforehand := map[byte]func(*port) error{guestproto.Rehearsal: rehearse, guestproto.ClockRate: tellClockRate}
	port := &port{Conn: conn, in: bufio.NewReader(conn)}
	for {
		first, err := port.in.Peek(1)
		if err != nil {
			return
		}
		if serve, ok := beforehand[first[0]]; ok {
			if err := serve(port); err != nil {
				return
			}
			continue
		}
		session, err := yamux.Server(port, guestproto.SessionConfig(io.Discard))
		if err != nil {
			return
		}
		g := &guest{containers: map[string]*container{}}
		for {
			stream, err := session.AcceptStream()
			if err != nil {
				return
			}
			go g.answer(stream)
		}
	}
}

// port reads ahead of the session.
type port struct {
	net.Conn
	in *bufio.Reader
}

func (p *port) Read(b []byte) (int, error) { return p.in.Read(b) }

func rehearse(port *port) error {
	_, err := port.in.Discard(1)
	var req guestproto.RehearsalRequest
	if err == nil {
		err = guestproto.ReadFrame(port, guestproto.MaxRequest, &req)
	}
	if err == nil {
		err = guestproto.WriteFrame(port, guestproto.Reply{})
	}
	return err
}

// tellClockRate says that the guest's clock is right.
func tellClockRate(p *port) error {
	if _, err := p.in.Discard(1); err != nil {
		return err
	}
	khz, err := tsc.Measure()
	if err != nil {
		return err
	}
	body, err := json.Marshal(guestproto.ClockRateReply{TSCKHz: float64(khz)})
	if err != nil {
		return err
	}
	return guestproto.WriteFrame(p, guestproto.Reply{Body: body})
}

func (g *guest) answer(stream *yamux.Stream) {
	req, err := guestproto.ReadRequest(stream)
	if err != nil {
		_ = stream.Close() // the host has gone
		return
	}
	var rep guestproto.Reply
	body, err := g.handle(req)
	if err != nil && !errors.As(err, &rep.Error) {
		rep.Error = guestproto.Errorf(guestproto.CodeInternal, "%v", err)
	}
	if body != nil {
		rep.Body, _ = json.Marshal(body) // plain structs
	}
	err = guestproto.WriteFrame(stream, rep)
	if err == nil && rep.Error == nil && req.Op == guestproto.OpStdio {
		var s guestproto.StdioRequest
		_ = json.Unmarshal(req.Body, &s) // handle has
		c, _ := g.container(req)
		p, _ := c.process(s.Process)
		p.streams[s.Stream] <- stream
		return
	}
	_ = stream.Close()
}

// container finds the one that a request is about. What is the VM's has the first one,
// which may be nil.
func (g *guest) container(req guestproto.Request) (*container, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch req.Op {
	case guestproto.OpCreate:
		g.containers[req.Container] = &container{processes: map[string]*process{}, killed: make(chan struct{})}
	case guestproto.OpRemove:
		delete(g.containers, req.Container)
		return nil, nil
	}
	c := g.containers[req.Container]
	if c == nil && req.Container != guestproto.First {
		return nil, guestproto.Errorf(guestproto.CodeNoProcess, "no container %q", req.Container)
	}
	return c, nil
}

func (g *guest) handle(req guestproto.Request) (any, error) {
	c, err := g.container(req)
	if err != nil {
		return nil, err
	}
	return c.handle(req)
}

func (c *container) handle(req guestproto.Request) (any, error) {
	switch req.Op {
	case guestproto.OpHello:
		return guestproto.HelloReply{Version: guestproto.Version, KernelRelease: "fake"}, nil
	case guestproto.OpCreate:
		return do(req, func(r guestproto.CreateRequest) (any, error) {
			if r.Spec.Process == nil {
				return guestproto.CreateReply{}, nil
			}
			return guestproto.CreateReply{}, c.add(guestproto.Init, r.Spec.Process)
		})
	case guestproto.OpStart:
		p, err := c.process(guestproto.Init)
		if err == nil {
			go c.run(p)
		}
		return nil, err
	case guestproto.OpExec:
		return do(req, func(r guestproto.ExecRequest) (any, error) {
			if err := c.add(r.ID, r.Process); err != nil {
				return nil, err
			}
			p, err := c.process(r.ID)
			go c.run(p)
			return guestproto.ExecReply{Pid: 2}, err
		})
	case guestproto.OpStdio:
		return do(req, func(r guestproto.StdioRequest) (any, error) { _, err := c.process(r.Process); return nil, err })
	case guestproto.OpWait:
		return do(req, func(r guestproto.WaitRequest) (any, error) {
			p, err := c.process(r.Process)
			if err != nil {
				return nil, err
			}
			<-p.ended
			return p.end, nil
		})
	case guestproto.OpSignal:
		return do(req, func(r guestproto.SignalRequest) (any, error) { return nil, c.signal(r.Process, r.Signal) })
	case guestproto.OpUpdate:
		return do(req, c.update)
	case guestproto.OpStats:
		c.mu.Lock()
		defer c.mu.Unlock()
		return guestproto.StatsReply{
			CPU:    guestproto.CPUStats{UsageMicros: 5},
			Memory: guestproto.MemoryStats{Usage: 1, Limit: c.limit, SwapLimit: guestproto.NoLimit},
			Pids:   guestproto.PidsStats{Current: 1, Limit: guestproto.NoLimit},
		}, nil
	case guestproto.OpOOM:
		return do(req, c.awaitKill)
	case guestproto.OpClock:
		return guestproto.ClockReply{UnixNano: time.Now().UnixNano()}, nil
	case guestproto.OpForget:
		return guestproto.ForgetReply{Before: 10, After: 1}, nil
	case guestproto.OpResize, guestproto.OpNetwork, guestproto.OpLook, guestproto.OpFlush, guestproto.OpDNS, guestproto.OpFreeze, guestproto.OpRemove:
		return nil, nil
	}
	return nil, guestproto.Errorf(guestproto.CodeBadRequest, "unknown request %q", req.Op)
}

// do reads the body of a request.
func do[T any](req guestproto.Request, f func(T) (any, error)) (any, error) {
	var body T
	if err := json.Unmarshal(req.Body, &body); err != nil {
		return nil, guestproto.Errorf(guestproto.CodeBadRequest, "%s: %v", req.Op, err)
	}
	return f(body)
}

// add makes a process, which does not run yet.
func (c *container) add(id string, spec *specs.Process) error {
	switch spec.Args[0] {
	case commandCat, commandExit, commandOOM, commandWait:
	default:
		return guestproto.Errorf(guestproto.CodeCommand, "exec: %q: executable file not found in $PATH", spec.Args[0])
	}
	p := &process{args: spec.Args, streams: map[guestproto.Stream]chan net.Conn{}, signals: make(chan int, 16), ended: make(chan struct{})}
	for _, s := range []guestproto.Stream{guestproto.Stdin, guestproto.Stdout, guestproto.Stderr} {
		if s != guestproto.Stderr || !spec.Terminal {
			p.streams[s] = make(chan net.Conn, 1)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes[id] = p
	return nil
}

func (c *container) process(id string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.processes[id]
	if p == nil {
		return nil, guestproto.Errorf(guestproto.CodeNoProcess, "no process %q", id)
	}
	return p, nil
}

// run is the life of a process.
func (c *container) run(p *process) {
	out := <-p.streams[guestproto.Stdout]
	over := make(chan int, 1)
	switch p.args[0] {
	case commandCat:
		go func() {
			_, _ = io.Copy(out, <-p.streams[guestproto.Stdin]) // either end may go
			over <- 0
		}()
	case commandExit:
		code, _ := strconv.Atoi(p.args[1])
		over <- code
	case commandOOM:
		c.mu.Lock()
		c.kills++
		close(c.killed)
		c.killed = make(chan struct{})
		c.mu.Unlock()
		p.end.OOMKilled = true
		p.signals <- int(unix.SIGKILL)
	}
	for alive := true; alive; {
		select {
		case p.end.Code = <-over:
			alive = false
		case s := <-p.signals:
			switch unix.Signal(s) {
			case unix.SIGTERM, unix.SIGKILL, unix.SIGINT, unix.SIGHUP:
				p.end.Signal, alive = s, false
			default:
				fmt.Fprintf(out, "signal %d\n", s)
			}
		}
	}
	_ = out.Close()
	if errs := p.streams[guestproto.Stderr]; errs != nil {
		_ = (<-errs).Close()
	}
	close(p.ended)
}

func (c *container) signal(id string, n int) error {
	p, err := c.process(id)
	if err != nil {
		return err
	}
	select {
	case <-p.ended:
		return guestproto.Errorf(guestproto.CodeNoProcess, "the process has ended")
	default:
	}
	if n != 0 {
		p.signals <- n
	}
	return nil
}

// update takes the memory limit, and refuses one of pids: there has to be something.
func (c *container) update(r guestproto.UpdateRequest) (any, error) {
	if r.Resources.Pids != nil {
		return nil, errors.New("the guest refuses a limit of pids")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := r.Resources.Memory; m != nil && m.Limit != nil {
		c.limit = uint64(*m.Limit)
	}
	return nil, nil
}

func (c *container) awaitKill(r guestproto.OOMRequest) (any, error) {
	for {
		c.mu.Lock()
		kills, killed := c.kills, c.killed
		c.mu.Unlock()
		if kills > r.Seen {
			return guestproto.OOMReply{Kills: kills}, nil
		}
		<-killed
	}
}
