package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// results has a row for every program: what it said about each runtime, by the runtime's name.
type results map[string]map[string]result

const (
	tableBegin = "<!-- conformance: written by `make conformance` -->\n"
	tableEnd   = "<!-- conformance: end -->\n"
)

func (t results) summary(runtime string) string {
	var ok, silent int
	for _, row := range t {
		if r := row[runtime]; r.ok() {
			ok++
			if r.assertions == 0 {
				silent++
			}
		}
	}
	return fmt.Sprintf("%s: %d of %d programs end without a failure, %d of these assert nothing", runtime, ok, len(t), silent)
}

// markdown is what stands between the markers. It needs a reason for each program that fails with boxlite, and for no other.
func (t results) markdown(reasons map[string]string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "- %s\n- %s\n\n", t.summary("runc"), t.summary("boxlite"))
	b.WriteString("| program | runc | boxlite | why boxlite fails |\n|---|---|---|---|\n")
	for _, program := range slices.Sorted(maps.Keys(t)) {
		row := t[program]
		if reason, ok := unsteady[program]; ok {
			fmt.Fprintf(&b, "| %s | %s | %s | Depends on who is quicker. %s |\n", program, row["runc"], row["boxlite"], reason)
			continue
		}
		reason, explained := reasons[program]
		switch boxlite := row["boxlite"]; {
		case !boxlite.ok() && !explained:
			return "", fmt.Errorf("%s fails, and reasons.go does not say why:\n\t%s", program, strings.Join(boxlite.failures, "\n\t"))
		case boxlite.ok() && explained:
			return "", fmt.Errorf("%s does not fail, but reasons.go says why", program)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", program, row["runc"], row["boxlite"], reason)
	}
	return b.String(), nil
}

// write puts the table into the document.
func write(path string, t results) error {
	table, err := t.markdown(reasons)
	if err != nil {
		return err
	}
	return replaceTable(path, tableBegin, tableEnd, table)
}

// replaceTable puts a table between two lines of the document.
func replaceTable(path, first, last, table string) error {
	document, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, _, after, err := cutTable(document, first, last)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, slices.Concat(before, []byte(table), after), 0o644)
}

func cutTable(document []byte, first, last string) (before, table, after []byte, err error) {
	begin := bytes.Index(document, []byte(first))
	end := bytes.Index(document, []byte(last))
	if begin < 0 || end < begin {
		return nil, nil, nil, fmt.Errorf("no lines %q and %q", first, last)
	}
	begin += len(first)
	return document[:begin], document[begin:end], document[end:], nil
}

// failing returns the programs that a runtime fails, in order.
func (t results) failing(runtime string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(t)), func(program string) bool { return t[program][runtime].ok() })
}

// check fails if a program failed with boxlite.
func (t results) check() error {
	var failed []string
	for _, program := range t.failing("boxlite") {
		failed = append(failed, program+": "+strings.Join(t[program]["boxlite"].failures, "; "))
	}
	if len(failed) > 0 {
		return fmt.Errorf("ended well before, and fail now:\n\t%s", strings.Join(failed, "\n\t"))
	}
	return nil
}

// readTable returns boxlite's cells in the document's table, by program.
func readTable(path string) (map[string]string, error) {
	document, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	_, table, _, err := cutTable(document, tableBegin, tableEnd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	cells := map[string]string{}
	for line := range strings.Lines(string(table)) {
		columns := strings.Split(line, " | ")
		if name := strings.TrimPrefix(columns[0], "| "); len(columns) == 4 && name != "program" {
			cells[name] = columns[2]
		}
	}
	return cells, nil
}
