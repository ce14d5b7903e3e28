package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A journal is what somebody writes, line by line, with the time at which each came.
type journal struct {
	mu      sync.Mutex
	lines   []entry
	partial []byte
}

type entry struct {
	at   time.Time
	text string
}

func (j *journal) Write(p []byte) (int, error) {
	now := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.partial = append(j.partial, p...)
	for {
		line, rest, ok := bytes.Cut(j.partial, []byte{'\n'})
		if !ok {
			return len(p), nil
		}
		j.lines = append(j.lines, entry{now, string(line)})
		j.partial = rest
	}
}

// times gives the time of each mark: of the first line that has it, after the line of the mark before.
func (j *journal) times(marks ...string) (times []time.Time, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	at := 0
	for _, mark := range marks {
		for ; at < len(j.lines) && !strings.Contains(j.lines[at].text, mark); at++ {
		}
		if at == len(j.lines) {
			return nil, fmt.Errorf("no line with %q in its place", mark)
		}
		times = append(times, j.lines[at].at)
		at++
	}
	return times, nil
}

// has says whether a line is text.
func (j *journal) has(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.lines, func(e entry) bool { return e.text == text })
}

// between is what lies between the line begin and the first line that begins with end.
func (j *journal) between(begin, end string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	inside := false
	for _, e := range j.lines {
		switch {
		case strings.HasPrefix(e.text, end):
			return b.String()
		case inside:
			b.WriteString(e.text + "\n")
		case e.text == begin:
			inside = true
		}
	}
	return b.String()
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for _, e := range j.lines {
		b.WriteString(e.at.Format("05.000 ") + e.text + "\n")
	}
	return b.String()
}
