package libvm

import (
	"log/slog"
	"testing"
	"time"
)

func TestGate(t *testing.T) {
	var g gate
	if !g.enter(nil) {
		t.Fatal("a new gate is closed")
	}
	// It shuts at once for whoever comes, and waits for who is inside.
	shut := make(chan struct{})
	go func() { g.shut(time.Hour); close(shut) }()
	for !g.isShut() {
		time.Sleep(time.Millisecond)
	}
	asked := false
	if g.enter(func() { asked = true }) || !asked {
		t.Errorf("a closed gate let somebody in, or did not call the function: %v", asked)
	}
	select {
	case <-shut:
		t.Error("shut has returned with somebody inside")
	default:
	}
	g.leave()
	<-shut

	passed := make(chan bool, 2)
	never, gone := make(chan struct{}), make(chan struct{})
	go func() { passed <- g.await(gone) }()
	close(gone)
	if <-passed {
		t.Error("await passed a closed gate")
	}
	go func() { passed <- g.await(never) }()
	told := false
	g.open(func() { told = true })
	if !<-passed || !told || !g.enter(nil) {
		t.Error("the opened gate does not let pass")
	}
	// Patience ends.
	g.shut(time.Millisecond)
	if !g.isShut() {
		t.Error("shut without patience left the gate open")
	}
}

func TestQueuedSignals(t *testing.T) {
	m := newMonitor(slog.New(slog.DiscardHandler)).own
	for _, s := range []queuedSignal{{15, false}, {0, false}, {10, false}, {15, false}, {15, true}} {
		m.queueSignal(s.number, s.all)
	}
	want := []queuedSignal{{15, false}, {10, false}, {15, true}}
	if got := m.paused.queued; len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("queued = %v, want %v", got, want)
	}
}
