package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The table in the document must be what the reasons are about; that it is what the programs say is for -check.
func TestTableOfTheDocument(t *testing.T) {
	cells, err := readTable("../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(cells) != 58 {
		t.Errorf("%d programs in the table, want the suite's 58", len(cells))
	}
	for program, cell := range cells {
		if _, ok := unsteady[program]; ok {
			continue
		}
		if _, explained := reasons[program]; explained == strings.HasPrefix(cell, "ok") {
			t.Errorf("%s: the table says %q; reasons.go explains a failure: %v", program, cell, explained)
		}
	}
	for program := range reasons {
		if _, ok := cells[program]; !ok {
			t.Errorf("reasons.go explains %s, which is not in the table", program)
		}
	}
}

func TestWriteAndRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+tableBegin+"old\n"+tableEnd+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	good, bad := result{assertions: 3}, result{assertions: 2, failed: 1, failures: []string{"not ok 2 - b"}}
	table := results{
		"kill":   {"runc": good, "boxlite": good},
		"delete": {"runc": bad, "boxlite": bad},
	}
	if err := write(path, table); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n" + tableBegin, tableEnd + "after\n", "boxlite: 1 of 2 programs", "| delete | fails 1 of 2 | fails 1 of 2 | The program wants"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the document lacks %q:\n%s", want, text)
		}
	}
	cells, err := readTable(path)
	if err != nil || len(cells) != 2 || cells["kill"] != "ok" || cells["delete"] != "fails 1 of 2" {
		t.Errorf("readTable = %v, %v", cells, err)
	}

	table["kill"]["boxlite"] = bad
	if err := write(path, table); err == nil || !strings.Contains(err.Error(), "kill fails") {
		t.Errorf("write with a failure that has no reason: %v", err)
	}
	if err := table.check(); err == nil || !strings.Contains(err.Error(), "kill: not ok 2 - b") {
		t.Errorf("check = %v, want the program and what failed", err)
	}
}
