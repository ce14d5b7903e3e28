package libvm

import (
	"sync"
	"time"
)

// gate stands before requests: to a guest that may be paused, of commands to a
// monitor that may be about to end. The zero value is open.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside int
	// changed is closed, and replaced, with every change that somebody waits for.
	changed chan struct{}
}

// enter passes the gate; leave must follow. A closed gate gives false, after
// it has called otherwise, if there is one: the gate does not open meanwhile.
func (g *gate) enter(otherwise func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		if otherwise != nil {
			otherwise()
		}
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.announce()
}

// shut lets nobody enter any more, and waits until all have left or patience
// is over: a guest that does not answer cannot keep itself from being paused.
func (g *gate) shut(patience time.Duration) {
	over := time.After(patience)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for g.inside > 0 {
		changed := g.watch()
		g.mu.Unlock()
		select {
		case <-changed:
			g.mu.Lock()
		case <-over:
			g.mu.Lock()
			return
		}
	}
}

// open undoes shut. The function is called before anybody can enter.
func (g *gate) open(before func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before()
	g.closed = false
	g.announce()
}

func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// await returns when the gate is open, or with false when done is closed.
func (g *gate) await(done <-chan struct{}) bool {
	for {
		g.mu.Lock()
		closed, changed := g.closed, g.watch()
		g.mu.Unlock()
		if !closed {
			return true
		}
		select {
		case <-changed:
		case <-done:
			return false
		}
	}
}

// watch and announce are called with mu held.
func (g *gate) watch() <-chan struct{} {
	if g.changed == nil {
		g.changed = make(chan struct{})
	}
	return g.changed
}

func (g *gate) announce() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}
