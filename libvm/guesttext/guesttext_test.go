package guesttext

import (
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

func TestGuestText(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"mount proc: invalid argument", "mount proc: invalid argument"},
		{"open /x: No such file or directory", "open /x: No-such-file or directory"},
		{"container does not exist", "container does-not-exist"},
		{"a\nb\x1b[31m\x00\tü\xff", `a\nb\x1b[31m\x00\tü` + "\ufffd"},
	} {
		if got := Harmless(c.text); got != c.want {
			t.Errorf("guestText(%q) = %q, want %q", c.text, got, c.want)
		}
	}
	for _, huge := range []string{strings.Repeat("x", 250_000), strings.Repeat("\x00", 250_000), strings.Repeat("no such file ", 20_000)} {
		if got := Harmless(huge); len(got) > maxGuestText || !strings.HasSuffix(got, "...") {
			t.Errorf("a text of %d bytes becomes one of %d", len(huge), len(got))
		}
	}
}

// A guest's error counts for what its code says, and for no more.
func TestTextOf(t *testing.T) {
	const words = `exec: "x": executable file not found; container not running`
	for code, want := range map[guestproto.Code]string{
		guestproto.CodeCommand:   `exec: "x": executable file not found; container not-running`,
		guestproto.CodeHook:      `exec: "x": executable file not-found; container not-running`,
		guestproto.CodeNoProcess: `exec: "x": executable file not-found; container not-running`,
		guestproto.CodeInternal:  `guest: exec: "x": executable file not-found; container not-running`,
		"invented":               `guest: exec: "x": executable file not-found; container not-running`,
	} {
		err := Error(guestproto.Errorf(code, "%s", words))
		if err.Error() != want {
			t.Errorf("textOf(%s) = %q, want %q", code, err, want)
		}
		var own *guestproto.Error
		if !errors.As(err, &own) || own.Code != code && own.Code != guestproto.CodeInternal {
			t.Errorf("textOf(%s) has code %v", code, own)
		}
	}
}

func FuzzGuestText(f *testing.F) {
	f.Add("no such file or directory\n")
	f.Fuzz(func(t *testing.T, text string) {
		got := Harmless(text)
		if len(got) > maxGuestText {
			t.Errorf("%d bytes", len(got))
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) && r != unicode.ReplacementChar }); i >= 0 {
			t.Errorf("%q has a control character", got)
		}
		if commandWords.MatchString(got) || stateWords.MatchString(got) {
			t.Errorf("%q has words that callers act on", got)
		}
	})
}
