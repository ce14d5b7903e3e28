package libvm

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// A guest on a busy machine may answer when nobody waits any more. It loses nothing by that.
func TestLateReply(t *testing.T) {
	p := newPeer(t)
	answer := make(chan struct{})
	var serving sync.WaitGroup
	go func() {
		for {
			s, err := p.session.AcceptStream()
			if err != nil {
				return // the test's end
			}
			serving.Go(func() {
				if _, err := guestproto.ReadRequest(s); err != nil {
					t.Error(err)
				}
				<-answer
				if err := guestproto.WriteFrame(s, guestproto.Reply{}); err != nil {
					t.Error(err)
				}
				_ = s.Close()
			})
		}
	}()
	if err := p.call(guestproto.OpHello, nil, nil, within(100*time.Millisecond)); !errors.Is(err, vmm.ErrNoAnswer) {
		t.Fatalf("a call without a reply: %v, want %v", err, vmm.ErrNoAnswer)
	}
	close(answer)
	if err := p.call(guestproto.OpHello, nil, nil, within(time.Minute)); err != nil {
		t.Errorf("a call after a late reply: %v", err)
	}
	serving.Wait()
	if err := p.port.Err(); err != nil {
		t.Error(err)
	}
}

// What a guest says of its steps is left out where it cannot be true.
func TestCheckSteps(t *testing.T) {
	good := trace.Span{Name: "mount", Begin: 100, Micros: 200}
	steps := []trace.Span{
		good,
		{Name: "before", Begin: -1},
		{Name: "backwards", Micros: -1},
		{Name: "later", Begin: 2_000_000},
		{Name: "longer", Micros: 2_000_000},
		{Name: strings.Repeat("x", 65)},
		{Name: "another's", Lane: "monitor"},
	}
	if got := checkSteps(steps, time.Second); !slices.Equal(got, []trace.Span{good}) {
		t.Errorf("left %v", got)
	}
	if got := checkSteps(slices.Repeat([]trace.Span{good}, 1000), time.Second); len(got) != maxSteps {
		t.Errorf("left %d of 1000", len(got))
	}
}
