package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// cases has what a suite said of each of its cases, by the case's and the runtime's name.
type cases map[string]map[string]caseResult

type caseResult struct {
	state   string // passed, skipped, or how it failed, in the suite's words
	message string // why it was skipped or failed
}

func (r caseResult) ok() bool { return r.state == "passed" || r.state == "skipped" }

// A caseTable is where a suite's cases are written in the document.
type caseTable struct {
	begin, end string // the lines around it
	noun       string // what the suite calls a case
	reasons    map[string]string
}

// add puts down a case's result.
func (c cases) add(name, runtime string, r caseResult) {
	if c[name] == nil {
		c[name] = map[string]caseResult{}
	}
	c[name][runtime] = r
}

// failing returns the cases that a runtime fails, in order.
func (c cases) failing(runtime string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c)), func(name string) bool { return c[name][runtime].ok() })
}

func (c cases) count(runtime, state string) (n int) {
	for _, row := range c {
		if row[runtime].state == state {
			n++
		}
	}
	return n
}

func (c cases) summary(runtime, noun string) string {
	passed := c.count(runtime, "passed")
	return fmt.Sprintf("%s: %d of %d %ss pass, %d skip themselves", runtime, passed, passed+len(c.failing(runtime)), noun, c.count(runtime, "skipped"))
}

// print shows what a runtime's cases came to, and why some failed.
func (c cases) print(runtime, noun string) {
	fmt.Println(c.summary(runtime, noun))
	for _, name := range c.failing(runtime) {
		fmt.Printf("%s\n\t%s\n", name, strings.ReplaceAll(c[name][runtime].message, "\n", "\n\t"))
	}
}

// markdown is what stands between the table's lines: the counts, and a row for each case that a runtime fails. It needs a
// reason for each that boxlite fails, and for no other.
func (c cases) markdown(t caseTable) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "- %s\n- %s\n\n", c.summary("runc", t.noun), c.summary("boxlite", t.noun))
	fmt.Fprintf(&b, "| %s | runc | boxlite | why boxlite fails |\n|---|---|---|---|\n", t.noun)
	failing := slices.Concat(c.failing("runc"), c.failing("boxlite"))
	slices.Sort(failing)
	for _, name := range slices.Compact(failing) {
		reason, explained := t.reasons[name]
		if boxlite := c[name]["boxlite"]; explained == boxlite.ok() {
			return "", fmt.Errorf("%s: %s, and there is a reason for a failure: %v", name, boxlite.state, explained)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", strings.ReplaceAll(name, "|", `\|`), c[name]["runc"].state, c[name]["boxlite"].state, reason)
	}
	for name := range t.reasons {
		if !slices.Contains(failing, name) {
			return "", fmt.Errorf("%s does not fail, but there is a reason for it", name)
		}
	}
	return b.String(), nil
}

func (c cases) write(path string, t caseTable) error {
	table, err := c.markdown(t)
	if err != nil {
		return err
	}
	return replaceTable(path, t.begin, t.end, table)
}
