package main

import (
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// A guest answers requests, honestly until its behaviour strikes.
type guest struct {
	*session
	behaviour behaviour // set by create
	started   atomic.Bool

	mu        sync.Mutex
	processes map[string]*process
}

// A process exists in words only.
type process struct {
	ended   chan struct{}
	end     guestproto.WaitReply // once ended is closed
	stdin   *stream
	stdout  *stream
	outputs []*stream // stdout among them
}

func newGuest(p *port) *guest {
	g := &guest{session: newSession(p), processes: map[string]*process{}}
	g.processes[guestproto.Init] = &process{ended: make(chan struct{})}
	return g
}

// serve returns when the host has gone.
func (g *guest) serve() {
	g.read(func(st *stream) {
		if g.hasty() {
			go func() {
				logf("hasty strikes before a request")
				st.reply(nil)
				st.close()
			}()
		}
	}, g.answer)
}

// answer replies to a request.
func (g *guest) answer(st *stream, req guestproto.Request) {
	if req.Op == guestproto.OpCreate {
		g.behaviour = chosen(req.Body)
	}
	if g.hasty() || g.strikes(req.Op) && g.strike(st, req) {
		return
	}
	body, open := g.honest(req)
	st.reply(body)
	if !open {
		st.close()
	}
	switch req.Op {
	case guestproto.OpStart:
		g.started.Store(true)
		if g.behaviour.op == running && g.behaviour.sudden() {
			g.strike(nil, guestproto.Request{Op: running})
		}
	case guestproto.OpStdio:
		g.attached(st, req.Body)
	}
}

// hasty says that each request has been answered before it came.
func (g *guest) hasty() bool { return g.started.Load() && g.behaviour.name == "hasty" }

// honest is the reply of a guest that means well. Open says that the stream goes on.
func (g *guest) honest(req guestproto.Request) (body any, open bool) {
	switch req.Op {
	case guestproto.OpHello:
		var uts unix.Utsname
		_ = unix.Uname(&uts) // only for the host's log
		return guestproto.HelloReply{Version: guestproto.Version, KernelRelease: unix.ByteSliceToString(uts.Release[:])}, false
	case guestproto.OpClock: // ahead by nothing, whatever time it is
		return guestproto.ClockReply{UnixNano: decode[guestproto.ClockRequest](req.Body).UnixNano}, false
	case guestproto.OpExec:
		r := decode[guestproto.ExecRequest](req.Body)
		p := &process{ended: make(chan struct{})}
		if r.Process == nil || len(r.Process.Args) == 0 || r.Process.Args[0] != "sleep" {
			close(p.ended)
		}
		g.mu.Lock()
		g.processes[r.ID] = p
		g.mu.Unlock()
		return guestproto.ExecReply{Pid: 7}, false
	case guestproto.OpStdio, guestproto.OpDNS, guestproto.OpDatagrams:
		return nil, true
	case guestproto.OpAccept:
		select {} // nobody ever connects here
	case guestproto.OpWatches:
		if g.behaviour.name != "extra-data" {
			select {} // nothing is ever watched here
		}
		return guestproto.WatchesReply{Gone: []int{1}}, false // so that the host asks again at once
	case guestproto.OpWait:
		p := g.process(decode[guestproto.WaitRequest](req.Body).Process)
		<-p.ended
		return p.end, false
	case guestproto.OpSignal:
		if r := decode[guestproto.SignalRequest](req.Body); r.Signal == int(unix.SIGKILL) {
			g.kill(r.Process)
			if r.All {
				g.kill(guestproto.Init)
			}
		}
		return nil, false
	case guestproto.OpStats:
		return guestproto.StatsReply{Memory: guestproto.MemoryStats{Limit: guestproto.NoLimit, SwapLimit: guestproto.NoLimit}, Pids: guestproto.PidsStats{Current: 1, Limit: guestproto.NoLimit}}, false
	case guestproto.OpOOM:
		if g.behaviour.name != "extra-data" {
			select {} // nothing is ever killed here
		}
		return guestproto.OOMReply{Kills: decode[guestproto.OOMRequest](req.Body).Seen + 1}, false // so that the host asks again at once
	}
	return nil, false
}

func decode[T any](body json.RawMessage) (v T) {
	_ = json.Unmarshal(body, &v) // the host means well
	return v
}

// process makes one that has ended of what is not known.
func (g *guest) process(id string) *process {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.processes[id]
	if p == nil {
		p = &process{ended: make(chan struct{})}
		close(p.ended)
	}
	return p
}

func (g *guest) kill(id string) {
	g.mu.Lock()
	p := g.processes[id]
	if p == nil {
		g.mu.Unlock()
		return
	}
	select {
	case <-p.ended:
		g.mu.Unlock()
		return
	default:
	}
	p.end = guestproto.WaitReply{ExitStatus: guestproto.ExitStatus{Signal: int(unix.SIGKILL)}}
	close(p.ended)
	outputs := p.outputs
	g.mu.Unlock()
	for _, st := range outputs {
		if !g.behaviour.pours() {
			st.close()
		}
	}
}

// attached is for a standard stream whose request has been answered.
func (g *guest) attached(st *stream, body json.RawMessage) {
	r := decode[guestproto.StdioRequest](body)
	p := g.process(r.Process)
	g.mu.Lock()
	switch r.Stream {
	case guestproto.Stdin:
		p.stdin = st
	case guestproto.Stdout:
		p.stdout = st
		fallthrough
	default:
		p.outputs = append(p.outputs, st)
	}
	g.mu.Unlock()
	if r.Stream == guestproto.Stdin {
		return
	}
	if r.Stream == guestproto.Stdout && r.Process != guestproto.Init && g.behaviour.pours() && g.behaviour.op == guestproto.OpExec {
		g.strike(nil, guestproto.Request{Op: guestproto.OpStdio, Body: body})
		return
	}
	select {
	case <-p.ended:
		st.close()
	default:
	}
}

// chosen is the behaviour that a container's environment names.
func chosen(create json.RawMessage) behaviour {
	r := decode[guestproto.CreateRequest](create)
	if r.Spec == nil || r.Spec.Process == nil {
		return behaviour{}
	}
	for _, v := range r.Spec.Process.Env {
		if name, value, _ := strings.Cut(v, "="); name == "HOSTILE" {
			return parseBehaviour(value)
		}
	}
	return behaviour{}
}
