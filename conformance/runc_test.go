package main

import (
	"reflect"
	"testing"
)

func TestReadBats(t *testing.T) {
	const output = `1..4
ok 1 runc create
not ok 2 runc exec # of a kind
# (in test file exec.bats, line 8)
#   failed
ok 3 runc checkpoint # skip test requires criu
ok 4 runc delete
`
	got := cases{}
	if err := readBats(got, "boxlite", "file", []byte(output)); err != nil {
		t.Fatal(err)
	}
	want := cases{
		"file: runc create":           {"boxlite": {state: "passed"}},
		"file: runc exec # of a kind": {"boxlite": {state: "failed", message: "(in test file exec.bats, line 8)\n  failed"}},
		"file: runc checkpoint":       {"boxlite": {state: "skipped"}},
		"file: runc delete":           {"boxlite": {state: "passed"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("readBats = %v, want %v", got, want)
	}
	for name, text := range map[string]string{"nothing": "", "an end too early": "1..2\nok 1 a\n", "no plan": "ok 1 a\n"} {
		if err := readBats(cases{}, "boxlite", "file", []byte(text)); err == nil {
			t.Errorf("readBats of %s: no error", name)
		}
	}
}
