package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"sync"
	"time"
)

// Event is something that QEMU reports by itself.
type Event struct {
	Name string
	// Data is the event's JSON object; nil for an event without.
	Data json.RawMessage
	Time time.Time
}

// Bounds of the queue, in events: beyond maxPlain the inconsequential are
// dropped, beyond maxKept the connection is given up.
const (
	maxPlain = 64
	maxKept  = 512
)

// kept names the events that a caller may wait for, and that therefore are
// never dropped.
var kept = map[string]bool{
	"SHUTDOWN":                       true,
	"RESET":                          true,
	"STOP":                           true,
	"RESUME":                         true,
	"POWERDOWN":                      true,
	"WAKEUP":                         true,
	"GUEST_PANICKED":                 true,
	"GUEST_CRASHLOADED":              true,
	"WATCHDOG":                       true,
	"DEVICE_DELETED":                 true,
	"DEVICE_UNPLUG_GUEST_ERROR":      true,
	"BLOCK_IO_ERROR":                 true,
	"JOB_STATUS_CHANGE":              true,
	"MIGRATION":                      true,
	"NETDEV_VHOST_USER_DISCONNECTED": true,
}

// eventQueue stands between the reader, which must never wait, and a caller
// that receives when it likes.
type eventQueue struct {
	out chan Event

	mu       sync.Mutex
	waiting  []Event
	finished bool // no more will come

	wake    chan struct{} // holds one: waiting or finished changed
	dropAll chan struct{}
	once    sync.Once
}

func newEventQueue() *eventQueue {
	q := &eventQueue{
		out:     make(chan Event),
		wake:    make(chan struct{}, 1),
		dropAll: make(chan struct{}),
	}
	go q.deliver()
	return q
}

func (q *eventQueue) put(e Event) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !kept[e.Name] {
		if len(q.waiting) >= maxPlain {
			return nil
		}
	} else if len(q.waiting) >= maxPlain {
		for _, w := range q.waiting {
			if w.Name == e.Name && bytes.Equal(w.Data, e.Data) {
				return nil
			}
		}
		if len(q.waiting) >= maxKept {
			return errors.New("too many events that nobody received")
		}
	}
	q.waiting = append(q.waiting, e)
	q.signal()
	return nil
}

// finish closes out once all that waits has been received.
func (q *eventQueue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.finished = true
	q.signal()
}

// discard closes out now.
func (q *eventQueue) discard() {
	q.once.Do(func() { close(q.dropAll) })
}

func (q *eventQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *eventQueue) deliver() {
	defer close(q.out)
	for {
		q.mu.Lock()
		var next *Event
		if len(q.waiting) > 0 {
			e := q.waiting[0]
			next = &e
			q.waiting = q.waiting[1:]
		}
		finished := q.finished
		q.mu.Unlock()

		if next == nil {
			if finished {
				return
			}
			select {
			case <-q.wake:
			case <-q.dropAll:
				return
			}
			continue
		}
		select {
		case q.out <- *next:
		case <-q.dropAll:
			return
		}
	}
}
