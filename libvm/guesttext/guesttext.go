// Package guesttext makes a guest's texts fit to be shown by a command: escaped,
// cut off at a length, and without words that callers act on. Every text of a guest
// passes through it.
package guesttext

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// maxGuestText bounds a text of the guest's in an error or a log, in bytes. A
// caller's pipe takes some 64 KiB before it blocks, and podman reads 8.
const maxGuestText = 2 << 10

// Callers of runc look for words in an error, and act on them. commandWords say that
// the command is at fault (exit codes 126 and 127), stateWords that the container
// has gone (docs/contract.md, "Errors").
var (
	commandWords = regexp.MustCompile(`(?i)no such file|permission denied|operation not permitted|not a directory|is a directory|not found|cannot find the file|open executable`)
	stateWords   = regexp.MustCompile(`(?i)not running|does not exist|no such process|already finished|invalid process|already exists`)
)

// Harmless makes a text of a guest fit to be shown. The result has a bounded length
// and no control characters. Words that a caller would act on are hyphenated.
func Harmless(text string) string {
	return hyphenate(commandWords, hyphenate(stateWords, printable(text, maxGuestText)))
}

// Error makes an error of a guest fit to be shown: its text is harmless, and its
// code is one that exists. Words about a command stay if the code says that the
// error is about one.
func Error(e *guestproto.Error) error {
	text := printable(e.Message, maxGuestText)
	switch e.Code {
	case guestproto.CodeCommand:
		return &guestproto.Error{Code: e.Code, Message: hyphenate(stateWords, text)}
	case guestproto.CodeNoProcess, guestproto.CodeBadRequest, guestproto.CodeHook:
		return &guestproto.Error{Code: e.Code, Message: Harmless(text)}
	case guestproto.CodeDiskFull:
		return fmt.Errorf("guest: %w", &guestproto.Error{Code: e.Code, Message: Harmless(text)})
	default:
		return fmt.Errorf("guest: %w", &guestproto.Error{Code: guestproto.CodeInternal, Message: Harmless(text)})
	}
}

func hyphenate(words *regexp.Regexp, text string) string {
	return words.ReplaceAllStringFunc(text, func(s string) string { return strings.ReplaceAll(s, " ", "-") })
}

// printable escapes what is no printable character, as in Go's string literals, and
// cuts the text off at that many bytes.
func printable(text string, most int) string {
	const cut = "..."
	var b strings.Builder
	for _, r := range text { // what is no UTF-8 comes as U+FFFD
		s := Escape(r)
		if b.Len()+len(s) > most-len(cut) {
			return b.String() + cut
		}
		b.WriteString(s)
	}
	return b.String()
}

// Escape is a character as it may be shown: printable, or as in Go's strings.
func Escape(r rune) string {
	if unicode.IsPrint(r) {
		return string(r)
	}
	return strings.Trim(strconv.QuoteRune(r), "'")
}
