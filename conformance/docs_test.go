package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const sentences = "../docs/runtime-spec.md"

// A line of the specification that demands something has a row.
func TestEverySentenceIsHere(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/opencontainers/runtime-spec").Output()
	if err != nil {
		t.Fatal(err)
	}
	covered := linesOfSections(t)
	demand := regexp.MustCompile(`\bMUST\b|\bREQUIRED\b`)
	for _, name := range []string{"runtime.md", "config.md", "config-linux.md"} {
		f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		number := 0
		for lines := bufio.NewScanner(f); lines.Scan(); {
			number++
			if demand.MatchString(lines.Text()) && !covered[name][number] {
				t.Errorf("%s:%d is not in %s: %.100s", name, number, sentences, lines.Text())
			}
		}
	}
}

// linesOfSections reads the first column below each heading that is a file's name: "5, 12-16".
func linesOfSections(t *testing.T) map[string]map[int]bool {
	text, err := os.ReadFile(sentences)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]map[int]bool{}
	section := ""
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.TrimSpace(name)
			sections[section] = map[int]bool{}
		}
		cell, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		if !ok || !strings.HasPrefix(line, "| ") {
			continue
		}
		for part := range strings.SplitSeq(cell, ", ") {
			var from, to int
			if n, _ := fmt.Sscanf(part, "%d-%d", &from, &to); n == 1 {
				to = from
			}
			for number := from; number > 0 && number <= to; number++ {
				sections[section][number] = true
			}
		}
	}
	return sections
}

// A test that a document names is there, and so is a program of the suite. A name may end in * for several.
func TestNamedTestsExist(t *testing.T) {
	tests := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("..", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, match := range function.FindAllStringSubmatch(string(source), -1) {
			tests[match[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`\bTest[A-Z]\w*\*?`)
	for _, path := range append(documents, "../README.md", "../SECURITY.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range name.FindAllString(string(text), -1) {
			if !named(tests, match) {
				t.Errorf("%s names %s, which is no test", path, match)
			}
		}
	}

	programs, err := readTable("../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sentences)
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range regexp.MustCompile(`\b[a-z]+(_[a-z]+)+\b`).FindAllString(string(text), -1) {
		if programs[program] == "" && program != "pivot_root" && program != "net_prio" {
			t.Errorf("%s names %s, which is no program of the suite", sentences, program)
		}
	}
}

func named(tests map[string]bool, name string) bool {
	prefix, several := strings.CutSuffix(name, "*")
	if !several {
		return tests[name]
	}
	for test := range tests {
		if strings.HasPrefix(test, prefix) {
			return true
		}
	}
	return false
}
