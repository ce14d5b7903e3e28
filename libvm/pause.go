package libvm

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"boxlite/internal/guestproto"
)

// StatePaused is the status that runc adds to the runtime spec's.
const StatePaused Status = "paused"

// A paused container's VM has its processors stopped: nothing of the container
// runs, and the guest's monotonic clock stands still with it. Monitor, QEMU and
// virtiofsd go on, idle; the host's cgroup is not frozen, so that the monitor
// can be asked and killed as ever.

// Pause stops the container, created or running, until Resume.
func (c *Container) Pause() error {
	return c.locked(func() error {
		switch c.Status() {
		case specs.StateCreated, specs.StateRunning:
		default:
			return ErrNotRunning
		}
		// The file first: should this process be killed, Resume finds its work.
		if err := c.setPaused(true); err != nil {
			return err
		}
		if err := c.request(controlRequest{Op: controlPause}); err != nil {
			return errors.Join(err, c.setPaused(false))
		}
		return nil
	})
}

// Resume undoes Pause.
func (c *Container) Resume() error {
	return c.locked(func() error {
		if c.Status() != StatePaused {
			return ErrNotPaused
		}
		if err := c.request(controlRequest{Op: controlResume}); err != nil {
			return err
		}
		return c.setPaused(false)
	})
}

func (c *Container) setPaused(paused bool) error {
	c.Paused = paused
	return writeState(c.dir, stateFile, &c.State)
}

// locked runs f with the container's lock held and its state read anew.
func (c *Container) locked(f func() error) error {
	unlock, err := lock(c.dir)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := readState(c.dir, stateFile)
	if err != nil {
		return err
	}
	c.State = *state
	return f()
}

// request asks the monitor for something that has no answer but success.
func (c *Container) request(req controlRequest) error {
	conn, _, err := dialControl(c.dir, req)
	if err != nil {
		return err
	}
	return conn.Close()
}

// pauseState is what the monitor knows of pauses.
type pauseState struct {
	gate gate
	// changing is held while the processors are being stopped or let go.
	changing sync.Mutex
	stats    atomic.Pointer[guestproto.StatsReply] // of the last pause
	queued   []queuedSignal                        // what was sent during the pause; the gate's lock guards it
}

type queuedSignal struct {
	number int
	all    bool
}

const (
	// pausePatience is how long requests that are under way keep a pause waiting.
	pausePatience = 5 * time.Second
	// clockPatience is how long a resume waits for the guest to have set its clock.
	clockPatience = 10 * time.Second
)

// ask makes a request of the guest if it is not paused.
func (m *monitor) ask(op guestproto.Op, body, reply any) error {
	if !m.paused.gate.enter(nil) {
		return ErrPaused
	}
	defer m.paused.gate.leave()
	return m.guest.call(op, body, reply, promptly)
}

// pause stops the VM's processors. It is no error if they are.
func (m *monitor) pause() error {
	m.paused.changing.Lock()
	defer m.paused.changing.Unlock()
	if m.paused.gate.isShut() {
		return nil
	}
	if stats, err := m.guest.stats(within(pausePatience)); err == nil { // the guest can be asked no more
		m.paused.stats.Store(stats)
	}
	m.paused.gate.shut(pausePatience)
	err := m.vmm.halt()
	if err != nil {
		m.paused.gate.open(func() {})
		go func() { _ = m.vmm.resume() }() // it may have stopped after all; QEMU takes commands in order
	}
	return err
}

// resume lets the processors go on and brings the guest up to date.
func (m *monitor) resume() error {
	queued, err := m.unpause()
	if err != nil {
		return err
	}
	clock := guestproto.ClockRequest{UnixNano: time.Now().UnixNano()}
	if err := m.guest.call(guestproto.OpClock, clock, nil, within(clockPatience)); err != nil {
		m.log.Warn("the guest's clock has not been set after the pause", "error", err)
	}
	go m.catchUp(queued)
	return nil
}

// unpause is resume without what follows: for a SIGKILL, which nothing must hold up.
func (m *monitor) unpause() (queued []queuedSignal, err error) {
	m.paused.changing.Lock()
	defer m.paused.changing.Unlock()
	if !m.paused.gate.isShut() {
		return nil, nil
	}
	if err := m.vmm.resume(); err != nil {
		return nil, err
	}
	m.paused.gate.open(func() { queued, m.paused.queued = m.paused.queued, nil })
	return queued, nil
}

// catchUp hands on what came during a pause.
func (m *monitor) catchUp(queued []queuedSignal) {
	for _, s := range queued {
		if err := m.signal(s.number, s.all); err != nil {
			m.log.Debug("signal after the pause", "signal", s.number, "error", err)
		}
	}
	if m.onTerminal() {
		if err := m.resize(); err != nil {
			m.log.Debug("resize after the pause", "error", err)
		}
	}
}

// queueSignal keeps a signal until the pause is over, each once, as the kernel
// does with those of a frozen process.
func (m *monitor) queueSignal(n int, all bool) {
	if s := (queuedSignal{n, all}); n != 0 && !slices.Contains(m.paused.queued, s) {
		m.paused.queued = append(m.paused.queued, s)
	}
}
