package libvm

import (
	"errors"
	"io"
	"os"
	"testing"
)

// A stdin whose process has ended leaves what comes then to others who read the file.
func TestReadUnless(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	over, inputOver, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	r.Fd() // blocking from here on, as what a monitor receives
	b := make([]byte, 10)
	write(t, w, "first")
	if n, err := readUnless(over, r, b); string(b[:n]) != "first" || err != nil {
		t.Fatalf("readUnless = %q, %v, want first", b[:n], err)
	}
	ended := make(chan error)
	go func() {
		_, err := readUnless(over, r, make([]byte, 10))
		ended <- err
	}()
	if err := inputOver.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("readUnless under way = %v, want EOF", err)
	}
	write(t, w, "next")
	if n, err := readUnless(over, r, b); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("readUnless afterwards = %q, %v, want EOF", b[:n], err)
	}
	if n, err := r.Read(b); string(b[:n]) != "next" || err != nil {
		t.Errorf("left in the file: %q, %v, want next", b[:n], err)
	}
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}
