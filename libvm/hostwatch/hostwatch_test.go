package hostwatch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

func newWatcher(t *testing.T) *Watcher {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// at watches below the machine's own root.
func (w *Watcher) at(t *testing.T, number int, dir, below string, mask uint32) error {
	t.Helper()
	root, err := os.Open("/")
	must(t, err)
	defer root.Close()
	return w.Add(number, root, dir, below, mask)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// say is events in short.
func say(events []guestproto.FileEvent) string {
	names := map[uint32]string{
		unix.IN_CREATE: "create", unix.IN_DELETE: "delete", unix.IN_MODIFY: "modify", unix.IN_ATTRIB: "attrib", unix.IN_CLOSE_WRITE: "close",
		unix.IN_MOVED_FROM: "from", unix.IN_MOVED_TO: "to", unix.IN_MOVE_SELF: "move-self", unix.IN_DELETE_SELF: "delete-self",
	}
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprintf("%d:%s:%s", e.Watch, names[e.Mask&guestproto.WatchedEvents], e.Name))
	}
	return strings.Join(out, " ")
}

func (w *Watcher) want(t *testing.T, want string) []guestproto.FileEvent {
	t.Helper()
	events, err := w.Read(100)
	if err != nil || say(events) != want {
		t.Errorf("Read = %s, %v, want %s", say(events), err, want)
	}
	return events
}

func TestEvents(t *testing.T) {
	dir, w := t.TempDir(), newWatcher(t)
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	must(t, w.at(t, 7, dir, "sub", guestproto.WatchedEvents))
	file := filepath.Join(dir, "sub", "f")
	must(t, os.WriteFile(file, []byte("x"), 0o600))
	w.want(t, "7:create:f 7:modify:f 7:close:f")

	must(t, w.at(t, 8, dir, "sub/f", unix.IN_ATTRIB|unix.IN_DELETE_SELF)) // a file, by itself
	must(t, os.Chmod(file, 0o644))
	w.want(t, "7:attrib:f 8:attrib:")
	must(t, os.Rename(file, filepath.Join(dir, "sub", "g")))
	moved := w.want(t, "7:from:f 7:to:g")
	if moved[0].Cookie == 0 || moved[0].Cookie != moved[1].Cookie {
		t.Errorf("cookies of a rename: %d and %d", moved[0].Cookie, moved[1].Cookie)
	}
	w.Remove(7)
	must(t, os.Remove(filepath.Join(dir, "sub", "g")))
	w.want(t, "8:attrib: 8:delete-self:")
	if len(w.watches)+len(w.numbers) != 0 {
		t.Errorf("left: %v, %v", w.watches, w.numbers)
	}
}

// The guest may know one file of the host by several names.
func TestTwoNumbersOfAFile(t *testing.T) {
	dir, w := t.TempDir(), newWatcher(t)
	must(t, w.at(t, 1, dir, "", unix.IN_CREATE))
	must(t, w.at(t, 2, dir, "", unix.IN_CREATE|unix.IN_DELETE))
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	w.want(t, "1:create:f 2:create:f")
	if err := w.at(t, 2, dir, "", unix.IN_DELETE); !errors.Is(err, os.ErrExist) || w.Len() != 2 || len(w.numbers) != 1 {
		t.Errorf("Add of a number in use = %v, %d watches, %v", err, w.Len(), w.numbers)
	}
	w.Remove(1)
	must(t, os.Remove(filepath.Join(dir, "f")))
	w.want(t, "2:delete:f")
}

func TestReadInPortions(t *testing.T) {
	dir, w := t.TempDir(), newWatcher(t)
	must(t, w.at(t, 1, dir, "", unix.IN_CREATE))
	for i := range 5 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
	}
	var got []string
	for len(got) < 5 {
		events, err := w.Read(2)
		if err != nil || len(events) == 0 || len(events) > 2 {
			t.Fatalf("Read = %v, %v", events, err)
		}
		for _, e := range events {
			got = append(got, string(e.Name))
		}
	}
	if strings.Join(got, "") != "01234" {
		t.Errorf("got %v", got)
	}
}

// What a container puts in the way is not followed.
func TestPathsOfAContainer(t *testing.T) {
	dir, w := t.TempDir(), newWatcher(t)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, os.Symlink("d", filepath.Join(dir, "link")))
	must(t, os.Symlink("/proc/self/root", filepath.Join(dir, "magic")))
	for _, c := range []struct {
		dir, below string
		want       error
	}{
		{dir, "link/x", unix.ELOOP},
		{dir, "link", unix.ELOOP},
		{dir, "../", unix.EXDEV},
		{dir, "none", unix.ENOENT},
		{dir + "/magic", "", unix.ELOOP},
	} {
		if err := w.at(t, 1, c.dir, c.below, unix.IN_CREATE); !errors.Is(err, c.want) {
			t.Errorf("Add(%s, %s) = %v, want %v", c.dir, c.below, err, c.want)
		}
	}
	must(t, w.at(t, 1, dir+"/link", "", unix.IN_CREATE)) // the way to a mount, as the container sees it
}

func TestClose(t *testing.T) {
	w, err := New()
	must(t, err)
	must(t, w.at(t, 1, t.TempDir(), "", unix.IN_CREATE))
	ended := make(chan error)
	go func() {
		_, err := w.Read(1)
		ended <- err
	}()
	must(t, w.Close())
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read = %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Read has not returned")
	}
	if err := w.at(t, 2, "/", "", unix.IN_CREATE); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Add = %v", err)
	}
}
