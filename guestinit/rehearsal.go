package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// answerRehearsal serves what follows guestproto.Rehearsal. A host that has gone
// shows in the next wait for one.
func (s *server) answerRehearsal(port io.ReadWriter) {
	var req guestproto.RehearsalRequest
	if err := guestproto.ReadFrame(port, guestproto.MaxRequest, &req); err != nil {
		debugf("read rehearsal: %v", err)
		return
	}
	var rep guestproto.Reply
	if err := errors.Join(s.rehearse(&req), s.clear()); err != nil {
		rep.Error = guestproto.Errorf(guestproto.CodeInternal, "%v", err)
	}
	if err := guestproto.WriteFrame(port, rep); err != nil {
		debugf("reply to rehearsal: %v", err)
	}
}

// rehearse holds a session of guestinit with itself, in which a container is made,
// lives and ends.
func (s *server) rehearse(req *guestproto.RehearsalRequest) error {
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- s.hold(theirs) }()
	session, err := yamux.Client(ours, guestproto.SessionConfig(os.Stderr))
	if err != nil {
		return err
	}
	err = play(session, req)
	return errors.Join(err, session.Close(), <-ended)
}

// play is the host's part.
func play(session *yamux.Session, req *guestproto.RehearsalRequest) error {
	call := func(op guestproto.Op, body, reply any) error {
		stream, err := session.OpenStream()
		if err != nil {
			return err
		}
		defer stream.Close()
		return guestproto.Call(stream, op, body, reply)
	}
	if err := call(guestproto.OpHello, req.Hello, new(guestproto.HelloReply)); err != nil {
		return err
	}
	if req.Network != nil {
		if err := call(guestproto.OpNetwork, req.Network, nil); err != nil {
			return err
		}
	}
	if err := call(guestproto.OpCreate, req.Create, nil); err != nil {
		return err
	}
	for _, name := range []guestproto.Stream{guestproto.Stdout, guestproto.Stderr} {
		stream, err := session.OpenStream()
		if err != nil {
			return err
		}
		if err := guestproto.Call(stream, guestproto.OpStdio, guestproto.StdioRequest{Process: guestproto.Init, Stream: name}, nil); err != nil {
			return err
		}
		go func() { // ends with the output, or with the session
			_, _ = io.Copy(io.Discard, stream)
			_ = stream.Close()
		}()
	}
	if err := call(guestproto.OpStart, guestproto.StartRequest{}, nil); err != nil {
		return err
	}
	var end guestproto.WaitReply
	if err := call(guestproto.OpWait, guestproto.WaitRequest{Process: guestproto.Init}, &end); err != nil {
		return err
	}
	if end.Code != 0 || end.Signal != 0 {
		return fmt.Errorf("the program ended with status %d, signal %d", end.Code, end.Signal)
	}
	return nil
}

// clear takes away what a container that has ended has left, and lays the
// groundwork for another one.
func (s *server) clear() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[guestproto.First]
	if c == nil {
		return errors.New("no container has been created")
	}
	delete(s.containers, guestproto.First)
	c.close()
	_ = c.null.Close()
	if err := os.Remove(c.cgroup.dir); err != nil {
		return err
	}
	if err := unix.Unmount(guestproto.ShareDir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the share: %w", err)
	}
	var err error
	s.ground, err = layGroundwork(s.children, s.filter)
	return err
}
