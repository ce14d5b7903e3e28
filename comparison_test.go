package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// notLookedAt is what a cell says that has no source.
const notLookedAt = "not looked at"

var (
	linkInText = regexp.MustCompile(`\[([^\]]*)\]\(([^)]*)\)`)
	testsName  = regexp.MustCompile("^`((?:Test|Fuzz)\\w+)`$")
)

// Every cell of README's comparison with other runtimes links to a test of ours or to a public source.
func TestComparison(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "\n| | boxlite | runc | gVisor | Kata | krun |\n|---|---|---|---|---|---|\n")
	if !found {
		t.Fatal("README.md has no comparison")
	}
	rows := 0
	for line := range strings.SplitSeq(table, "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		rows++
		cells := cellsOf(line)
		if len(cells) != 6 {
			t.Errorf("%.60s: %d cells, want 6", line, len(cells))
		}
		for _, cell := range cells[1:] {
			if cell != notLookedAt && !linkInText.MatchString(cell) {
				t.Errorf("%s: a cell without a link: %q", cells[0], cell)
			}
		}
	}
	if rows == 0 {
		t.Error("the comparison has no rows")
	}
}

// Links of the documents to files lead to files, and those that name a test to the file with that test.
func TestLinksOfTheDocuments(t *testing.T) {
	for _, path := range documents(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range linkInText.FindAllStringSubmatch(string(text), -1) {
			file, _, _ := strings.Cut(link[2], "#")
			if file == "" || strings.Contains(file, "://") {
				continue
			}
			file = filepath.Join(filepath.Dir(path), file)
			name := testsName.FindStringSubmatch(link[1])
			if name == nil {
				if _, err := os.Stat(file); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				continue
			}
			source, err := os.ReadFile(file)
			if err != nil {
				t.Errorf("%s: %v", path, err)
			} else if !strings.Contains(string(source), "\nfunc "+name[1]+"(") {
				t.Errorf("%s: %s has no %s", path, file, name[1])
			}
		}
	}
}
