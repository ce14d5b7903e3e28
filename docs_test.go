package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// What CONTRIBUTING.md, "Words", allows.
const (
	wordsInSentence = 25
	charsInCell     = 240 // three lines of 80
)

// The documents keep to the rules for words.
func TestWordsOfTheDocuments(t *testing.T) {
	for _, path := range documents(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, complaint := range checkWords(string(text)) {
			t.Errorf("%s:%s", path, complaint)
		}
	}
}

func documents(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(paths, "README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md", "e2e/README.md", "images/README.md")
}

func TestCheckWords(t *testing.T) {
	const long = "one two three four five six seven eight nine ten one two three four five six seven eight nine ten one two three four five six"
	for _, c := range []struct{ name, text, want string }{
		{"two sentences", "One. " + long[:100] + ". Three.", ""},
		{"a long one", "One.\nTwo " + long + ".", "1: 27 words"},
		{"over two lines", "# Title\n\none two\n" + long, "3: 28 words"},
		{"two items", "- one two three\n- " + long, "2: 26 words"},
		{"a dot in a name", "See a.b and 1.2 for " + long + ".", "1: 31 words"},
		{"fenced code", "```\n" + long + "\n```\n", ""},
		{"indented code", "Run\n\n    " + long + "\n", ""},
		{"code in a sentence", "`" + long + "` is one word.", ""},
		{"a link's target", "[one](http://" + strings.ReplaceAll(long, " ", "/ ") + ")", ""},
		{"names of tests", strings.Repeat("TestOne, ", 30) + "linux_ns_path", ""},
		{"a long cell", "| a | b |\n|---|---|\n| a | " + strings.Repeat("Long one. ", 25) + "|\n", "3: a cell of 249 characters"},
		{"a pipe in a cell", `| a | ` + strings.Repeat(`Code \| one. `, 16) + "|\n", ""},
		{"a cell's sentence", "| " + long + " | b |\n", "1: 26 words"},
		{"written by a program", "<!-- x: written by `make x` -->\n" + long + "\n<!-- x: end -->\n" + long, "4: 26 words"},
	} {
		got := strings.Join(checkWords(c.text), "\n")
		if got != c.want && (c.want == "" || !strings.HasPrefix(got, c.want)) {
			t.Errorf("%s: checkWords = %q, want %q", c.name, got, c.want)
		}
	}
}

var (
	codeSpan   = regexp.MustCompile("`[^`]*`")
	linkTarget = regexp.MustCompile(`\]\([^)]*\)`)
	listItem   = regexp.MustCompile(`^\s*([-*]|\d+\.) `)
	nameOfTest = regexp.MustCompile(`\b(Test|Fuzz)\w*\*?|\b[a-z]+(_[a-z]+)+\b`)
	endOfCell  = regexp.MustCompile(`(?:^|[^\\])\|`)
	endOfSense = regexp.MustCompile(`[.!?]["')*]*\s+`)
)

// checkWords says which sentences and cells of a document in Markdown are too long. Code and what a
// program has written are nobody's sentences.
func checkWords(text string) (complaints []string) {
	complain := func(line int, format string, args ...any) {
		complaints = append(complaints, fmt.Sprintf("%d: ", line)+fmt.Sprintf(format, args...))
	}
	var paragraph []string
	begin := 0
	end := func() {
		for _, sentence := range sentencesOf(strings.Join(paragraph, " ")) {
			if n := countWords(sentence); n > wordsInSentence {
				complain(begin, "%d words, want %d at most: %.90s", n, wordsInSentence, strings.TrimSpace(sentence))
			}
		}
		paragraph = nil
	}
	var fenced, generated bool
	for i, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			end()
			fenced = !fenced
		case strings.HasPrefix(line, "<!--"):
			end()
			generated = strings.Contains(line, "written by")
		case fenced || generated:
		case strings.TrimSpace(line) == "", strings.HasPrefix(line, "#"):
			end()
		case strings.HasPrefix(line, "|"):
			end()
			for _, cell := range cellsOf(line) {
				if n := utf8.RuneCountInString(linkTarget.ReplaceAllString(cell, "]")); n > charsInCell {
					complain(i+1, "a cell of %d characters, want %d at most: %.90s", n, charsInCell, cell)
				}
				begin, paragraph = i+1, []string{cell}
				end()
			}
		case strings.HasPrefix(line, "    ") && len(paragraph) == 0: // code
		default:
			if listItem.MatchString(line) {
				end()
			}
			if len(paragraph) == 0 {
				begin = i + 1
			}
			paragraph = append(paragraph, strings.TrimSpace(line))
		}
	}
	end()
	return complaints
}

func cellsOf(row string) (cells []string) {
	row = strings.TrimPrefix(row, "|")
	for row != "" {
		at := endOfCell.FindStringIndex(row)
		if at == nil {
			return append(cells, strings.TrimSpace(row))
		}
		cells, row = append(cells, strings.TrimSpace(row[:at[1]-1])), row[at[1]:]
	}
	return cells
}

func sentencesOf(paragraph string) (sentences []string) {
	paragraph = codeSpan.ReplaceAllString(paragraph, "Code")
	paragraph = linkTarget.ReplaceAllString(paragraph, "]")
	from := 0
	for _, at := range endOfSense.FindAllStringIndex(paragraph, -1) {
		sentences, from = append(sentences, paragraph[from:at[1]]), at[1]
	}
	return append(sentences, paragraph[from:])
}

// countWords does not count the names of tests and of programs of the validation suite.
func countWords(sentence string) (n int) {
	for field := range strings.FieldsSeq(nameOfTest.ReplaceAllString(sentence, "")) {
		if strings.ContainsFunc(field, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) {
			n++
		}
	}
	return n
}
