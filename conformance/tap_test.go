package main

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/internal/isolate"
)

func TestReadTAP(t *testing.T) {
	for _, c := range []struct {
		name, output string
		want         result
		cell         string
	}{
		{"all pass", "TAP version 13\nok 1 - a\nok 2 - b\n1..2\n", result{assertions: 2}, "ok"},
		{"plan first", "TAP version 13\n1..1\nok 1 - a\n", result{assertions: 1}, "ok"},
		{"nothing asserted", "TAP version 13\n1..0\n", result{}, "ok, asserts nothing"},
		{"skipped", "1..1\nok 1 # SKIP no such thing\n", result{}, "ok, asserts nothing"},
		{"to do", "not ok 1 # TODO later\nok 2 - a\n1..2\n", result{assertions: 1}, "ok"},
		{
			"one fails", "TAP version 13\nok 1 - a\nnot ok 2 - b\n1..2\n",
			result{assertions: 2, failed: 1, failures: []string{"not ok 2 - b"}},
			"fails 1 of 2",
		},
		{
			"another program's TAP in a diagnostic", "ok 1 - a\n  ---\n  stdout: |\n    not ok 1 - x\n    1..7\n  ...\n1..1\n",
			result{assertions: 1},
			"ok",
		},
		{
			"lines between", "failed to create the container\nokay\nok 1\n1..1\n",
			result{assertions: 1},
			"ok",
		},
		{"two documents", "TAP version 13\nok 1 - a\n1..1\nTAP version 13\nok 1 - b\n1..1\n", result{assertions: 2}, "ok"},
		{
			"the first of two ends early", "TAP version 13\nok 1 - a\nTAP version 13\nok 1 - b\n1..1\n",
			result{assertions: 2, failures: []string{"ended without a plan after 1 tests"}},
			"fails",
		},
		{"no output", "", result{}, "ok, asserts nothing"},
		{"words only", "cannot\n", result{failures: []string{"ended without a plan after 0 tests"}}, "fails"},
		{"too few", "ok 1 - a\n1..2\n", result{assertions: 1, failures: []string{"planned 2 tests, made 1"}}, "fails"},
	} {
		got := readTAP([]byte(c.output))
		if got.assertions != c.want.assertions || got.failed != c.want.failed || !slices.Equal(got.failures, c.want.failures) {
			t.Errorf("%s: readTAP = %+v, want %+v", c.name, got, c.want)
		}
		if cell := got.String(); cell != c.cell {
			t.Errorf("%s: cell = %q, want %q", c.name, cell, c.cell)
		}
	}
}

func TestJudgeMindsTheExitStatus(t *testing.T) {
	exit := exec.Command("sh", "-c", "exit 3").Run()
	for _, c := range []struct {
		err  error
		want string
	}{
		{exit, "ended with exit status 3"},
		{isolate.ErrTimeout, "took too long"},
		{errors.Join(exit, errors.New("remove cgroup: busy")), "ended with"},
	} {
		r := judge([]byte("ok 1 - a\n1..1\n"), c.err)
		if r.ok() || !strings.Contains(r.failures[0], c.want) {
			t.Errorf("judge(%v) = %+v, want a failure with %q", c.err, r, c.want)
		}
	}
}
