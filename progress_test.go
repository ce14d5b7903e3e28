package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"
)

// A terminal is told, and its line is empty afterwards; a pipe is not.
func TestUnderWay(t *testing.T) {
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	terminal, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	done := underWay(terminal, "template lean, 1 of 2", 10*time.Millisecond)
	buffer := make([]byte, 200)
	n, err := master.Read(buffer)
	if got := string(buffer[:n]); err != nil || !strings.HasPrefix(got, "\r\x1b[Ktemplate lean, 1 of 2: 0 s") {
		t.Errorf("the terminal shows %q, %v", got, err)
	}
	done()
	for !strings.HasSuffix(string(buffer[:n]), "\r\x1b[K") {
		if n, err = master.Read(buffer); err != nil {
			t.Fatalf("the terminal shows %q, then %v, want an empty line at the end", buffer[:n], err)
		}
	}

	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	var file bytes.Buffer
	for _, done := range []func(){underWay(write, "x", time.Millisecond), underWay(&file, "x", time.Millisecond)} {
		time.Sleep(5 * time.Millisecond)
		done()
	}
	write.Close()
	if n, err := read.Read(buffer); n > 0 || file.Len() > 0 {
		t.Errorf("a pipe was told %q, a buffer %q; %v", buffer[:n], file.String(), err)
	}
}
