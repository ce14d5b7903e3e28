// Package trace records how long the steps of a command take, in its own process
// and in those that work for it, and writes them for a viewer.
package trace

import (
	"encoding/json"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Span is a step: when it began and how long it took.
type Span struct {
	Name string `json:"name"`
	// Lane says who took the step: spans of one lane share a line of the
	// viewer. Those that a process has recorded itself have none.
	Lane string `json:"lane,omitempty"`
	// Begin counts from the recorder's zero, in microseconds.
	Begin int64 `json:"begin"`
	// Micros is the length in microseconds.
	Micros int64 `json:"micros"`
}

// Recorder collects spans. A nil one records nothing, at no cost.
type Recorder struct {
	zero time.Time

	mu    sync.Mutex
	spans []Span
}

// New makes a recorder whose spans count from zero. If zero is time.Unix(0, 0), the
// spans can be put together with those of other processes on the machine.
func New(zero time.Time) *Recorder { return &Recorder{zero: zero} }

// Begin starts a step; the function that it returns ends it.
func (r *Recorder) Begin(name string) (end func()) {
	if r == nil {
		return func() {}
	}
	began := time.Now()
	return func() {
		span := Span{Name: name, Begin: began.Sub(r.zero).Microseconds(), Micros: time.Since(began).Microseconds()}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.spans = append(r.spans, span)
	}
}

// Add takes over another's spans under a lane of their own, moved by shift.
func (r *Recorder) Add(lane string, shift time.Duration, spans []Span) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range spans {
		if s.Lane == "" {
			s.Lane = lane
		}
		s.Begin += shift.Microseconds()
		r.spans = append(r.spans, s)
	}
}

// Take returns what there is so far and forgets it.
func (r *Recorder) Take() []Span {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	spans := r.spans
	r.spans = nil
	return spans
}

// event is one of the Trace Event Format, which chrome://tracing and
// ui.perfetto.dev show. Times are in microseconds.
type event struct {
	Name     string            `json:"name"`
	Phase    string            `json:"ph"`
	Process  int               `json:"pid"`
	Thread   int               `json:"tid"`
	Begin    int64             `json:"ts"`
	Duration int64             `json:"dur"`
	Args     map[string]string `json:"args,omitempty"`
}

// AppendTo writes the spans to the end of a file, under the name of the calling
// process. The file is a JSON array of the Trace Event Format that is never ended.
// The format allows that, so that many commands can write into one file.
func (r *Recorder) AppendTo(path, process string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var text []byte
	if st.Size() == 0 {
		text = append(text, "[\n"...)
	}
	for _, e := range events(r.Take(), process) {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		text = append(append(text, line...), ",\n"...)
	}
	_, err = f.Write(text)
	return err
}

// events turns spans into events, those of each lane into a thread's.
func events(spans []Span, process string) []event {
	pid := os.Getpid()
	out := []event{{Name: "process_name", Phase: "M", Process: pid, Args: map[string]string{"name": process}}}
	threads := map[string]int{}
	for _, s := range spans {
		thread, known := threads[s.Lane]
		if !known {
			thread = len(threads) + 1
			threads[s.Lane] = thread
			name := s.Lane
			if name == "" {
				name = "boxlite"
			}
			out = append(out, event{Name: "thread_name", Phase: "M", Process: pid, Thread: thread, Args: map[string]string{"name": name}})
		}
		out = append(out, event{Name: s.Name, Phase: "X", Process: pid, Thread: thread, Begin: s.Begin, Duration: s.Micros})
	}
	return out
}
