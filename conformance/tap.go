package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// A result is what a program said about a runtime.
type result struct {
	assertions int      // those that are neither skipped nor to do
	failed     int      // of these
	failures   []string // what failed, in the program's words
}

func (r result) ok() bool { return len(r.failures) == 0 }

// String is the text of a cell of the table.
func (r result) String() string {
	switch {
	case r.ok() && r.assertions == 0:
		return "ok, asserts nothing"
	case r.ok():
		return "ok"
	case r.failed == 0:
		return "fails"
	}
	return fmt.Sprintf("fails %d of %d", r.failed, r.assertions)
}

// judge reads a program's output, which is TAP (version 13, https://testanything.org) with other lines between, and the
// error that it ended with.
func judge(output []byte, err error) result {
	r := readTAP(output)
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		r.failures = append(r.failures, "ended with "+exit.String())
	default:
		r.failures = append(r.failures, err.Error())
	}
	return r
}

// readTAP counts the assertions and holds them against the plans. Some programs write several documents, one after the
// other.
func readTAP(output []byte) result {
	var r result
	if len(bytes.TrimSpace(output)) == 0 {
		return r // the exit status is all that the program says
	}
	doc := document{planned: unplanned}
	for line := range bytes.Lines(output) {
		// What is indented belongs to a diagnostic; it may be another program's TAP.
		text := strings.TrimRight(string(line), "\r\n")
		switch planned, isPlan := readPlan(text); {
		case strings.HasPrefix(text, "TAP version "):
			if doc != (document{planned: unplanned}) {
				r.finish(doc)
			}
			doc = document{planned: unplanned}
		case isPlan:
			doc.planned = planned
		default:
			passed, directive, ok := readTest(text)
			if !ok {
				continue
			}
			doc.tests++
			if directive == "skip" || directive == "todo" {
				continue
			}
			r.assertions++
			if !passed {
				r.failed++
				r.failures = append(r.failures, text)
			}
		}
	}
	r.finish(doc)
	return r
}

// unplanned is the plan of a document that has none yet.
const unplanned = -1

// A document is the part of the output that one plan is for; the plan stands before or after the tests.
type document struct {
	planned int
	tests   int
}

func (r *result) finish(doc document) {
	switch doc.planned {
	case doc.tests:
	case unplanned:
		r.failures = append(r.failures, fmt.Sprintf("ended without a plan after %d tests", doc.tests))
	default:
		r.failures = append(r.failures, fmt.Sprintf("planned %d tests, made %d", doc.planned, doc.tests))
	}
}

// readPlan reads "1..N". A plan of 0 may be written with the reason for it.
func readPlan(line string) (tests int, ok bool) {
	rest, ok := strings.CutPrefix(line, "1..")
	if !ok {
		return 0, false
	}
	number, _, _ := strings.Cut(rest, " ")
	tests, err := strconv.Atoi(number)
	return tests, err == nil
}

// readTest reads "ok 1 - description" or "not ok 1 # TODO description". The directive is in lower case, "" if there is none.
func readTest(line string) (passed bool, directive string, ok bool) {
	rest, failed := strings.CutPrefix(line, "not ok")
	if !failed {
		if rest, ok = strings.CutPrefix(line, "ok"); !ok {
			return false, "", false
		}
	}
	if rest != "" && rest[0] != ' ' {
		return false, "", false // a word that begins so
	}
	if _, after, found := strings.Cut(rest, "#"); found {
		directive, _, _ = strings.Cut(strings.TrimSpace(after), " ")
	}
	return !failed, strings.ToLower(directive), true
}
