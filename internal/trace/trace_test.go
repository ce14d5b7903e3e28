package trace

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A file that several commands have written into is an array, but for its end,
// with the spans of each lane in a thread of their own.
func TestAppendTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.json")
	for _, process := range []string{"create c1", "start c1"} {
		r := New(time.Unix(0, 0))
		end := r.Begin("whole")
		r.Begin("part")()
		r.Add("guest", time.Duration(time.Now().UnixNano()), []Span{{Name: "inside", Begin: 5, Micros: 7}})
		end()
		if err := r.AppendTo(path, process); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var events []event
	if err := json.Unmarshal([]byte(strings.TrimSuffix(string(raw), ",\n")+"]"), &events); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	var got []string
	begins := map[string]int64{}
	for _, e := range events {
		got = append(got, strings.Join([]string{e.Phase, e.Name, e.Args["name"]}, " "))
		begins[e.Name] = e.Begin
	}
	one := []string{"M thread_name boxlite", "X part ", "M thread_name guest", "X inside ", "X whole "}
	want := slices.Concat([]string{"M process_name create c1"}, one, []string{"M process_name start c1"}, one)
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if now := time.Now().UnixMicro(); begins["inside"] < begins["whole"] || begins["whole"] > now || now-begins["whole"] > int64(time.Minute/time.Microsecond) {
		t.Errorf("spans begin at %v, now is %d", begins, now)
	}
}

func TestNoRecorder(t *testing.T) {
	var r *Recorder
	r.Begin("step")()
	r.Add("lane", 0, []Span{{Name: "step"}})
	if got := r.Take(); got != nil {
		t.Errorf("a nil recorder holds %v", got)
	}
}
