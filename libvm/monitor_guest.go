package libvm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/sockrelay"
	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/controlport"
	"github.com/boxlite-oci/boxlite/libvm/guesttext"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// guest is the host's end of the control protocol. Every call opens a stream of
// its own, so calls may be made side by side.
type guest struct {
	session *yamux.Session
	port    *controlport.Port
	// container is the one that requests are about, by its name in the guest.
	container string
}

// in is the same guest with requests about another container.
func (g *guest) in(container string) *guest {
	return &guest{session: g.session, port: g.port, container: container}
}

// dialGuest begins the protocol on the VM's control port. Nothing is sent until
// the first call. A guest that breaks the protocol loses the port, and opts.Violated
// hears why.
func dialGuest(conn net.Conn, opts controlport.Options) (*guest, error) {
	port := controlport.New(conn, opts)
	session, err := yamux.Client(port, guestproto.SessionConfig(io.Discard))
	if err != nil {
		return nil, err
	}
	go func() {
		<-session.CloseChan()
		if !port.Ended() { // yamux itself has found the reason
			_ = port.Violate(errors.New("its session is of no use any more"))
		}
	}()
	return &guest{session: session, port: port}, nil
}

// patience is how long a call waits.
type patience struct {
	// sign is how long the guest may give no sign of life at all; zero is for
	// as long as answer.
	sign time.Duration
	// answer is how long the reply may take; zero is for as long as the VM lives.
	answer time.Duration
}

var (
	// promptly is for what a healthy guest answers at once, be it one of many emulated
	// ones on a busy host. One whose PID 1 stands still is found after sign.
	promptly = patience{sign: 10 * time.Second, answer: 30 * time.Second}
	// atOnce is for signals: who sends one waits for its effect, not for this reply.
	atOnce = patience{answer: 3 * time.Second}
	// untilTheEnd is for what ends with the container.
	untilTheEnd = patience{}
)

// within is patience for an answer that may come at any time until then.
func within(answer time.Duration) patience { return patience{answer: answer} }

// call makes one request.
func (g *guest) call(op guestproto.Op, body, reply any, p patience) error {
	stream, err := g.open(op, body, reply, p)
	if err != nil {
		return err
	}
	return stream.Close()
}

// open is call for requests whose stream goes on after the reply.
func (g *guest) open(op guestproto.Op, body, reply any, p patience) (*yamux.Stream, error) {
	c := g.begin(op, body, reply, p.answer)
	stream, err := c.await(p)
	if errors.Is(err, vmm.ErrNoAnswer) {
		go c.abandon()
	}
	return stream, err
}

// call is a request under way. Opening its stream and sending it may take as long as
// the port is full, and yamux bounds neither; so a goroutine does both.
type call struct {
	op    guestproto.Op
	g     *guest
	heard uint64 // from the guest, before
	done  chan struct{}

	sent atomic.Bool // the whole request

	stream *yamux.Stream // once done is closed, if err is nil
	err    error
}

// begin makes a request whose reply is given up after that time; zero never.
func (g *guest) begin(op guestproto.Op, body, reply any, answer time.Duration) *call {
	c := &call{op: op, g: g, heard: g.port.Heard(), done: make(chan struct{})}
	deadline := time.Time{}
	if answer > 0 {
		deadline = time.Now().Add(answer)
	}
	go func() {
		defer close(c.done)
		c.stream, c.err = g.exchange(op, body, reply, deadline, &c.sent)
	}()
	return c
}

// await waits for the reply. An error that matches ErrNoAnswer leaves the request under
// way: the caller abandons it, or waits for done.
func (c *call) await(p patience) (*yamux.Stream, error) {
	var sign, answer <-chan time.Time
	if p.sign > 0 {
		sign = time.After(p.sign)
	}
	if p.answer > 0 {
		answer = time.After(p.answer)
	}
	for {
		select {
		case <-c.done:
			return c.stream, c.err
		case <-sign:
			if c.g.port.Heard() == c.heard {
				return nil, fmt.Errorf("guest: %w to %s within %s, nor any other sign of life", vmm.ErrNoAnswer, c.op, p.sign)
			}
			sign = nil
		case <-answer:
			return nil, fmt.Errorf("guest: %w to %s within %s", vmm.ErrNoAnswer, c.op, p.answer)
		}
	}
}

// abandon closes the stream of a reply that nobody waits for any more.
func (c *call) abandon() {
	<-c.done
	if c.stream != nil {
		_ = c.stream.Close() // the guest's side has nothing that could be lost
	}
}

// exchange sends a request and reads its reply.
func (g *guest) exchange(op guestproto.Op, body, reply any, deadline time.Time, sent *atomic.Bool) (*yamux.Stream, error) {
	stream, err := g.session.OpenStream()
	if err != nil {
		return nil, g.endOf(op)
	}
	if err := stream.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, stream.Close())
	}
	allowed, raw := int64(4+guestproto.MaxReply), true
	switch op { // bytes may follow the reply before it is read here
	case guestproto.OpStdio, guestproto.OpDNS, guestproto.OpDatagrams, guestproto.OpDial:
		allowed = controlport.Unlimited
	case guestproto.OpAccept: // which may wait for long before somebody reads
		allowed = acceptReply + sockrelay.Window
	default:
		raw = false
	}
	g.port.Allow(stream.StreamID(), allowed)
	counted := &countedStream{ReadWriter: stream, sent: sent}
	err = guestproto.Call(counted, op.In(g.container), body, reply)
	var own *guestproto.Error
	if replied := err == nil || errors.As(err, &own); replied && raw && own == nil {
		return stream, stream.SetDeadline(time.Time{})
	}
	late := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, yamux.ErrTimeout)
	if late && !g.session.IsClosed() {
		if err := g.abandon(stream); err != nil {
			return nil, g.endOf(op)
		}
		return nil, fmt.Errorf("guest: %w to %s", vmm.ErrNoAnswer, op)
	}
	bad := g.port.Finish(stream.StreamID(), counted.read)
	if err == nil && bad == nil {
		return stream, nil
	}
	_ = stream.Close() // the call's own error says more
	switch {
	case own != nil && bad == nil:
		return nil, guesttext.Error(own)
	case g.session.IsClosed(), bad != nil:
		return nil, g.endOf(op)
	default:
		return nil, fmt.Errorf("%s: %w", op, g.port.Violate(errors.New(guesttext.Harmless(err.Error()))))
	}
}

// abandon has the stream's reply thrown away, whenever it comes.
func (g *guest) abandon(stream *yamux.Stream) error {
	if err := g.port.Abandon(stream.StreamID(), 4+guestproto.MaxReply); err != nil {
		return err
	}
	// Who waited in vain is told no more than that.
	_ = errors.Join(stream.SetDeadline(time.Time{}), stream.Close())
	// It ends when the guest closes the stream, or when the session does so for it.
	go func() {
		b := make([]byte, 4096)
		for err := error(nil); err == nil; stream.Shrink() {
			_, err = stream.Read(b)
		}
	}()
	return nil
}

// countedStream counts what is read of a stream, and notes that what was written is on
// its way: a request is one Write.
type countedStream struct {
	io.ReadWriter
	read int64
	sent *atomic.Bool
}

func (c *countedStream) Write(b []byte) (int, error) {
	n, err := c.ReadWriter.Write(b)
	c.sent.Store(err == nil)
	return n, err
}

func (c *countedStream) Read(b []byte) (int, error) {
	n, err := c.ReadWriter.Read(b)
	c.read += int64(n)
	return n, err
}

// endOf is the error of a request that the end of the session has ended.
func (g *guest) endOf(op guestproto.Op) error {
	if err := g.port.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s: %w", op, ErrVMLost)
}

// lossPatience is how long after a connection to a VM the VM's own end may show, on a
// host where much else wants the processors.
const lossPatience = 5 * time.Second

// explain says with the loss of the VM how QEMU and virtiofsd ended.
func (m *monitor) explain(err error) error {
	if !errors.Is(err, ErrVMLost) || m.vmm == nil {
		return err
	}
	if m.lost != nil { // nil of a VM that could not be started, which has ended
		select {
		case <-m.lost:
		case <-time.After(lossPatience):
		}
	}
	return fmt.Errorf("%w%s", err, m.vmm.LastWords())
}

// hello waits for the guest to come up and gives it the time and entropy.
func (g *guest) hello(debug bool, timeout time.Duration) (release string, err error) {
	entropy := make([]byte, 64)
	if _, err := rand.Read(entropy); err != nil {
		return "", err
	}
	req := guestproto.HelloRequest{Version: guestproto.Version, UnixNano: time.Now().UnixNano(), Entropy: entropy, Debug: debug}
	var rep guestproto.HelloReply
	if err := g.call(guestproto.OpHello, req, &rep, within(timeout)); err != nil {
		return "", err
	}
	if rep.Version != guestproto.Version {
		return "", fmt.Errorf("the initramfs speaks protocol %d and boxlite %d: install both from one build", rep.Version, guestproto.Version)
	}
	return guesttext.Harmless(rep.KernelRelease), nil
}

// tellTime sets the guest's wall clock, which is then behind by late at most. A
// request that is late is not seen from a clock that is ahead by the guest, which so
// says what its clock was: one that was ahead of the reply is set back.
func (g *guest) tellTime(p patience) (late time.Duration, err error) {
	var rep guestproto.ClockReply
	req := guestproto.ClockRequest{}
	for {
		began := time.Now()
		req.UnixNano = began.UnixNano()
		if err := g.call(guestproto.OpClock, req, &rep, p); err != nil {
			return 0, err
		}
		ended := time.Now()
		if ahead := time.Duration(rep.UnixNano - ended.UnixNano()); req.Back || ahead < clockTolerance {
			return ended.Sub(began), nil
		}
		req.Back = true
	}
}

// create has the guest build a container. Its steps go to the recorder, which may
// be nil.
func (g *guest) create(req guestproto.CreateRequest, steps *trace.Recorder, timeout time.Duration) error {
	if steps == nil {
		return g.call(guestproto.OpCreate, req, nil, within(timeout))
	}
	req.Trace = true
	var rep guestproto.CreateReply
	began := time.Now()
	end := steps.Begin("build the container, in the guest")
	err := g.call(guestproto.OpCreate, req, &rep, within(timeout))
	end()
	if err == nil {
		steps.Add("guest", time.Duration(began.UnixNano()), checkSteps(rep.Steps, time.Since(began)))
	}
	return err
}

// maxSteps bounds what a guest may say of its steps.
const maxSteps = 100

// checkSteps leaves of a guest's steps those that can be true: they lie within
// the time of the request, and have short names.
func checkSteps(steps []trace.Span, within time.Duration) []trace.Span {
	steps = slices.DeleteFunc(steps, func(s trace.Span) bool {
		return s.Begin < 0 || s.Micros < 0 || s.Begin > within.Microseconds() || s.Micros > within.Microseconds() || len(s.Name) > 64 || s.Lane != ""
	})
	return steps[:min(len(steps), maxSteps)]
}

// wait returns how process ended, when it has. The status is one that a process can
// have.
func (g *guest) wait(process string) (guestproto.WaitReply, error) {
	var rep guestproto.WaitReply
	err := g.call(guestproto.OpWait, guestproto.WaitRequest{Process: process}, &rep, untilTheEnd)
	rep.Code, rep.Signal = rep.Code&0xff, rep.Signal&0x7f
	return rep, err
}

// signal sends a signal to a process, or to all processes of the container. A guest
// that has the request and does not answer is busy. The signal is then under way,
// like one that a kernel has queued, and that is no error. Only signal 0 needs the
// answer, as it asks whether the process is there.
func (g *guest) signal(process string, signal int, all bool) error {
	c := g.begin(guestproto.OpSignal, guestproto.SignalRequest{Process: process, Signal: signal, All: all}, nil, promptly.answer)
	_, err := c.await(atOnce)
	go c.abandon()
	if errors.Is(err, vmm.ErrNoAnswer) && signal != 0 && c.sent.Load() {
		return nil
	}
	return err
}
