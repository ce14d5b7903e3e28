package fdpass

import (
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pair are two ends of a connection.
func pair(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	ours, file, err := Socketpair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	t.Cleanup(func() { _, _ = ours.Close(), conn.Close() })
	return ours, conn.(*net.UnixConn)
}

// pipes are n files: the reading ends of pipes, and their writing ends, which hear of
// it when the last copy of the other is closed.
func pipes(t *testing.T, n int) (read, write []*os.File) {
	t.Helper()
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		read, write = append(read, r), append(write, w)
	}
	t.Cleanup(func() { CloseAll(read); CloseAll(write) })
	return read, write
}

// wantClosed wants nobody to have the reading ends any more.
func wantClosed(t *testing.T, read, write []*os.File) {
	t.Helper()
	CloseAll(read)
	for i, w := range write {
		if _, err := w.Write([]byte("x")); err == nil {
			t.Errorf("descriptor %d is open still", i)
		}
	}
}

// keepForgotten has no file closed but those that somebody closes.
func keepForgotten(t *testing.T) {
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
}

func TestSendReceive(t *testing.T) {
	ours, theirs := pair(t)
	for n := range mostFiles + 1 {
		read, write := pipes(t, n)
		if err := Send(ours, read...); err != nil {
			t.Fatal(err)
		}
		files, err := Receive(theirs)
		if err != nil || len(files) != n {
			t.Fatalf("%d descriptors: Receive = %v, %v", n, files, err)
		}
		for i, f := range files { // in their order, and not for programs that are executed
			if _, err := write[i].Write([]byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 1)
			if _, err := f.Read(got); err != nil || got[0] != byte(i) {
				t.Errorf("descriptor %d reads %v, %v", i, got, err)
			}
			if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor %d has flags %#x, %v", i, flags, err)
			}
		}
		CloseAll(files)
		wantClosed(t, read, write)
	}
}

// A message with another number of descriptors than it says is an error, and whoever
// receives it has none of them afterwards.
func TestReceiveCounts(t *testing.T) {
	keepForgotten(t)
	for name, c := range map[string]struct {
		sent int
		text []byte
		want string
	}{
		"fewer":               {1, []byte{2}, "1 descriptors came, not 2"},
		"more":                {3, []byte{2}, "3 descriptors came, not 2"},
		"unannounced":         {1, []byte{0}, "1 descriptors came, not 0"},
		"more than have room": {mostFiles + 1, []byte{mostFiles + 1}, "more than 4 descriptors came"},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := pair(t)
			read, write := pipes(t, c.sent)
			var fds []int
			for _, f := range read {
				fds = append(fds, int(f.Fd()))
			}
			if _, _, err := ours.WriteMsgUnix(c.text, unix.UnixRights(fds...), nil); err != nil {
				t.Fatal(err)
			}
			files, err := Receive(theirs)
			if files != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Receive = %v, %v, want an error with %q", files, err, c.want)
			}
			wantClosed(t, read, write)
		})
	}
}

// A connection that has ended has brought no descriptors, and says so.
func TestReceiveFromNobody(t *testing.T) {
	ours, theirs := pair(t)
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	if files, err := Receive(theirs); err == nil {
		t.Errorf("Receive = %v", files)
	}
}

func TestNamed(t *testing.T) {
	keepForgotten(t)
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	l, err := Listen(dir, "socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(filepath.Join(dir.Name(), "socket")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v, want it for its owner alone", st, err)
	}
	read, write := pipes(t, 1)
	if err := SendNamed(Path(dir, "socket"), "a name", read[0].Fd()); err != nil {
		t.Fatal(err)
	}
	file, err := ReceiveNamed(l)
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	wantClosed(t, read, write)

	for name, fds := range map[string]int{"none": 0, "two": 2} {
		read, write := pipes(t, fds)
		var rights []int
		for _, f := range read {
			rights = append(rights, int(f.Fd()))
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: Path(dir, "socket"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.WriteMsgUnix([]byte("x"), unix.UnixRights(rights...), nil); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		if file, err := ReceiveNamed(l); err == nil {
			t.Errorf("%s: ReceiveNamed = %v", name, file)
		}
		wantClosed(t, read, write)
	}
	if err := SendNamed(Path(dir, "nobody"), "", dir.Fd()); err == nil {
		t.Error("a descriptor was sent to nobody")
	}
	if _, err := Listen(dir, "socket"); err == nil {
		t.Error("a second socket of the name was made")
	}
}

func TestCheckPeer(t *testing.T) {
	ours, _ := pair(t)
	if err := CheckPeer(ours); err != nil {
		t.Errorf("this process itself: %v", err)
	}
	_ = ours.Close()
	if err := CheckPeer(ours); err == nil {
		t.Error("a connection that is closed has a peer")
	}
}
