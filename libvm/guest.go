package libvm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/yamux"

	"boxlite/internal/guestproto"
	"boxlite/internal/trace"
)

// guest is the host's end of the control protocol. Every call opens a stream of
// its own, so calls may be made side by side.
type guest struct {
	session *yamux.Session
}

// dialGuest begins the protocol on the VM's control port. Nothing is sent until
// the first call.
func dialGuest(port net.Conn) (*guest, error) {
	session, err := yamux.Client(port, guestproto.SessionConfig(io.Discard))
	if err != nil {
		return nil, err
	}
	return &guest{session: session}, nil
}

// call makes one request. A timeout of zero waits for as long as the VM lives.
func (g *guest) call(op guestproto.Op, body, reply any, timeout time.Duration) error {
	stream, err := g.open(op, body, reply, timeout)
	if err != nil {
		return err
	}
	return stream.Close()
}

// open is call for requests whose stream goes on after the reply.
func (g *guest) open(op guestproto.Op, body, reply any, timeout time.Duration) (*yamux.Stream, error) {
	stream, err := g.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, ErrVMLost)
	}
	if timeout > 0 {
		if err := stream.SetDeadline(time.Now().Add(timeout)); err != nil {
			return nil, errors.Join(err, stream.Close())
		}
	}
	if err := guestproto.Call(stream, op, body, reply); err != nil {
		_ = stream.Close() // the call's own error says more
		return nil, guestError(op, timeout, err)
	}
	return stream, stream.SetDeadline(time.Time{})
}

func guestError(op guestproto.Op, timeout time.Duration, err error) error {
	var own *guestproto.Error
	switch {
	case errors.As(err, &own):
		if own.Code == guestproto.CodeInternal {
			return fmt.Errorf("guest: %w", err)
		}
		return err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, yamux.ErrTimeout):
		return fmt.Errorf("guest: no answer to %s within %s", op, timeout)
	default:
		return fmt.Errorf("%s: %w", op, ErrVMLost)
	}
}

// hello waits for the guest to come up and gives it the time and entropy.
func (g *guest) hello(debug bool, timeout time.Duration) (release string, err error) {
	entropy := make([]byte, 64)
	if _, err := rand.Read(entropy); err != nil {
		return "", err
	}
	req := guestproto.HelloRequest{Version: guestproto.Version, UnixNano: time.Now().UnixNano(), Entropy: entropy, Debug: debug}
	var rep guestproto.HelloReply
	if err := g.call(guestproto.OpHello, req, &rep, timeout); err != nil {
		return "", err
	}
	if rep.Version != guestproto.Version {
		return "", fmt.Errorf("the initramfs speaks protocol %d and boxlite %d: install both from one build", rep.Version, guestproto.Version)
	}
	return rep.KernelRelease, nil
}

// create has the guest build a container. Its steps go to the recorder, which may
// be nil.
func (g *guest) create(req guestproto.CreateRequest, steps *trace.Recorder, timeout time.Duration) error {
	if steps == nil {
		return g.call(guestproto.OpCreate, req, nil, timeout)
	}
	req.Trace = true
	var rep guestproto.CreateReply
	began := time.Now()
	end := steps.Begin("build the container, in the guest")
	err := g.call(guestproto.OpCreate, req, &rep, timeout)
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

// wait returns how process ended, when it has.
func (g *guest) wait(process string) (guestproto.WaitReply, error) {
	var rep guestproto.WaitReply
	err := g.call(guestproto.OpWait, guestproto.WaitRequest{Process: process}, &rep, 0)
	return rep, err
}

func (g *guest) signal(process string, signal int, all bool) error {
	return g.call(guestproto.OpSignal, guestproto.SignalRequest{Process: process, Signal: signal, All: all}, nil, requestTimeout)
}

// requestTimeout bounds every request that a healthy guest answers at once, be
// it one of many emulated ones on a busy host.
const requestTimeout = 90 * time.Second
