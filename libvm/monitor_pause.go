package libvm

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

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
	// flushPatience is how long a pause waits for what is not written yet.
	flushPatience = 5 * time.Second
	// clockPatience is how long a resume waits for the guest to have set its clock.
	clockPatience = 10 * time.Second
)

// ask makes a request of the guest if it is not paused.
func (m *tenant) ask(op guestproto.Op, body, reply any) error {
	if !m.paused.gate.enter(nil) {
		return ErrPaused
	}
	defer m.paused.gate.leave()
	return m.guest.call(op, body, reply, promptly)
}

// pause stops the VM's processors, or the container alone if there are others in the VM.
// It is no error if they stand still.
func (m *tenant) pause() error {
	m.paused.changing.Lock()
	defer m.paused.changing.Unlock()
	if m.paused.gate.isShut() {
		return nil
	}
	if m.inPod() {
		return m.freeze()
	}
	stats, err := m.guest.stats(within(pausePatience)) // the guest can be asked no more
	if err == nil {
		m.paused.stats.Store(stats)
	}
	m.paused.gate.shut(pausePatience)
	if err == nil { // else it would not answer this either
		m.flush()
	}
	err = m.vmm.Halt()
	if err != nil {
		m.paused.gate.open(func() {})
		go func() { _ = m.vmm.Resume() }() // it may have stopped after all; QEMU takes commands in order
	}
	return err
}

// flush has the guest write what the host is to see of its files while it stands
// still. A guest that does not is paused all the same.
func (m *monitor) flush() {
	began := time.Now()
	err := m.guest.call(guestproto.OpFlush, nil, nil, within(flushPatience))
	m.log.Debug("flushed the share", "took", time.Since(began).Round(time.Millisecond), "error", err)
}

// resume lets the container go on. If the processors stand still, it lets these go on
// and brings the guest up to date.
func (m *tenant) resume() error {
	if m.frozen.isShut() {
		return m.thaw()
	}
	queued, err := m.unpause()
	if err != nil {
		return err
	}
	if _, err := m.guest.tellTime(within(clockPatience)); err != nil {
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
	if err := m.vmm.Resume(); err != nil {
		return nil, err
	}
	m.paused.gate.open(func() { queued, m.paused.queued = m.paused.queued, nil })
	return queued, nil
}

// catchUp hands on what came during a pause.
func (m *tenant) catchUp(queued []queuedSignal) {
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
func (m *tenant) queueSignal(n int, all bool) {
	if s := (queuedSignal{n, all}); n != 0 && !slices.Contains(m.paused.queued, s) {
		m.paused.queued = append(m.paused.queued, s)
	}
}
