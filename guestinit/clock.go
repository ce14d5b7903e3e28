package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/tsc"
)

// clock moves the clock forward, and back only if it is told to: what a request was
// late by is what the clock is behind, and one that took long must not undo a better
// one.
func (s *server) clock(req *guestproto.ClockRequest) (any, error) {
	rep := &guestproto.ClockReply{UnixNano: time.Now().UnixNano()}
	if rep.UnixNano >= req.UnixNano && !req.Back {
		return rep, nil
	}
	return rep, setClock(req.UnixNano)
}

func setClock(unixNano int64) error {
	now := unix.NsecToTimespec(unixNano)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("set clock to %v: %w", time.Unix(0, unixNano), err)
	}
	return nil
}

// answerClockRate serves what follows guestproto.ClockRate. A host that has gone
// shows in the next wait for one.
func (s *server) answerClockRate(port io.Writer) {
	var rep guestproto.Reply
	rate, err := s.clockRate()
	if err == nil {
		rep.Body, err = json.Marshal(rate)
	}
	if err != nil {
		rep.Error = guestproto.Errorf(guestproto.CodeInternal, "%v", err)
	}
	if err := guestproto.WriteFrame(port, rep); err != nil {
		debugf("reply to clock rate: %v", err)
	}
}

// clockRate is by the clock of the time since guestinit has started, which is long
// enough whatever came in between.
func (s *server) clockRate() (*guestproto.ClockRateReply, error) {
	now, err := tsc.Now()
	if err != nil {
		return nil, err
	}
	khz, _, err := s.booted.KHz(now)
	return &guestproto.ClockRateReply{TSCKHz: khz}, err
}
