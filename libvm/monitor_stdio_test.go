package libvm

import (
	"io"
	"os"
	"testing"
	"time"
)

// An input that was stopped leaves what comes then to others who read the file.
func TestInputStops(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	r.Fd() // blocking from here on, as what a monitor receives
	in, err := newInput(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.release()
	b := make([]byte, 10)
	write(t, w, "first")
	if n, err := in.Read(b); string(b[:n]) != "first" || err != nil {
		t.Fatalf("Read = %q, %v, want first", b[:n], err)
	}
	ended := make(chan error)
	go func() {
		_, err := in.Read(make([]byte, 10))
		ended <- err
	}()
	time.Sleep(20 * time.Millisecond) // the read is under way, as a rule
	in.stop()
	if err := <-ended; err != io.EOF {
		t.Errorf("Read under way = %v, want EOF", err)
	}
	write(t, w, "next")
	if n, err := in.Read(b); n != 0 || err != io.EOF {
		t.Errorf("Read after stop = %q, %v, want EOF", b[:n], err)
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
