package inotify

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNext(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	wd, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_ATTRIB)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "a name"), 0o700), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, BufferSize)
	n, err := unix.Read(fd, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Event{{wd, unix.IN_CREATE | unix.IN_ISDIR, 0, "a name"}, {wd, unix.IN_ATTRIB | unix.IN_ISDIR, 0, ""}} {
		e, rest, err := Next(b[:n])
		if err != nil || e != want {
			t.Errorf("Next = %+v, %v, want %+v", e, err, want)
		}
		b, n = rest, len(rest)
	}
	if n != 0 {
		t.Errorf("%d bytes are left", n)
	}
}

func FuzzNext(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00abc\x00"))
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff\xff\xff\xffabc\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for err := error(nil); err == nil && len(b) > 0; {
			var rest []byte
			if _, rest, err = Next(b); len(rest) >= len(b) {
				t.Fatalf("%d bytes are left of %d", len(rest), len(b))
			}
			b = rest
		}
	})
}
