package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	criTableBegin = "<!-- critest: written by `make conformance-cri` -->\n"
	criTableEnd   = "<!-- critest: end -->\n"
)

// failing returns the specs that a runtime fails, in order.
func (r criResults) failing(runtime string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(r)), func(spec string) bool {
		state := r[spec][runtime].state
		return state == "passed" || state == "skipped"
	})
}

func (r criResults) count(runtime, state string) (n int) {
	for _, spec := range r {
		if spec[runtime].state == state {
			n++
		}
	}
	return n
}

func (r criResults) summary(runtime string) string {
	passed := r.count(runtime, "passed")
	return fmt.Sprintf("%s: %d of %d specs pass, %d skip themselves", runtime, passed, passed+len(r.failing(runtime)), r.count(runtime, "skipped"))
}

// markdown is what stands between the markers: the counts, and a row for each spec that a runtime fails. It needs a reason
// for each that boxlite fails, and for no other.
func (r criResults) markdown(reasons map[string]string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "- %s\n- %s\n\n", r.summary("runc"), r.summary("boxlite"))
	b.WriteString("| spec | runc | boxlite | why boxlite fails |\n|---|---|---|---|\n")
	failing := slices.Concat(r.failing("runc"), r.failing("boxlite"))
	slices.Sort(failing)
	for _, spec := range slices.Compact(failing) {
		reason, explained := reasons[spec]
		if state := r[spec]["boxlite"].state; explained == (state == "passed" || state == "skipped") {
			return "", fmt.Errorf("%s: %s, and cri_reasons.go explains a failure: %v", spec, state, explained)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", strings.ReplaceAll(spec, "|", `\|`), r[spec]["runc"].state, r[spec]["boxlite"].state, reason)
	}
	for spec := range reasons {
		if !slices.Contains(failing, spec) {
			return "", fmt.Errorf("%s does not fail, but cri_reasons.go says why", spec)
		}
	}
	return b.String(), nil
}

func (r criResults) write(path string) error {
	table, err := r.markdown(criReasons)
	if err != nil {
		return err
	}
	return replaceTable(path, criTableBegin, criTableEnd, table)
}
