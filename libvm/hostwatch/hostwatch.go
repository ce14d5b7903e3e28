// Package hostwatch watches a container's files on the host (inotify(7)), for processes
// in the guest that watch them there.
//
// The guest says which files. Whoever controls the container, or shares a volume with it,
// changes paths meanwhile. So a path is walked to its descriptor, below a root that the
// caller has opened.
package hostwatch

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/inotify"
)

// gather is how long Read waits for more after the first event. The guest, whose own
// changes show here too, knows of them by then.
const gather = 50 * time.Millisecond

// ErrLost is returned where the kernel had more events than it keeps
// (fs.inotify.max_queued_events). Those are lost, and it goes on.
var ErrLost = errors.New("more changed at once than the kernel keeps")

// Watcher watches files. Its methods may be called side by side, but for Read.
type Watcher struct {
	file   *os.File // the inotify instance
	raw    syscall.RawConn
	calls  chan func()   // for the thread that walks
	closed chan struct{} // by Close
	rest   []byte        // what Read has of the kernel's and has not given out

	mu      sync.Mutex
	watches map[int]int   // by the guest's number
	numbers map[int][]int // the other way: the guest may have several names for a file
}

// New starts a watcher without watches. Close ends it.
func New() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, withLimit("fs.inotify.max_user_instances", unix.EMFILE, os.NewSyscallError("inotify_init1", err))
	}
	w := &Watcher{
		file: os.NewFile(uintptr(fd), "inotify"), calls: make(chan func()), closed: make(chan struct{}),
		watches: map[int]int{}, numbers: map[int][]int{},
	}
	w.raw, err = w.file.SyscallConn()
	if err == nil {
		ready := make(chan error)
		go w.work(ready)
		err = <-ready
	}
	if err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	return w, nil
}

// Close removes all watches. A Read under way returns an error that matches os.ErrClosed,
// as do all later calls.
func (w *Watcher) Close() error {
	close(w.closed)
	return w.file.Close()
}

// work is the life of the thread that walks. inotify takes paths only, and an open
// directory has none but as the working directory, of which this thread has its own.
func (w *Watcher) work(ready chan<- error) {
	runtime.LockOSThread() // for good: the thread ends with this goroutine
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		ready <- os.NewSyscallError("unshare", err)
		return
	}
	ready <- nil
	for {
		select {
		case call := <-w.calls:
			call()
		case <-w.closed:
			return
		}
	}
}

// Add watches a file for events of the mask. Symbolic links on the way to dir are
// followed below root, but for the kernel's own. None is followed on the further way below, which
// is empty for dir itself. What Read gives of it has the number. One that is in use is
// refused (os.ErrExist).
func (w *Watcher) Add(number int, root *os.File, dir, below string, mask uint32) error {
	done := make(chan error, 1)
	select {
	case w.calls <- func() { done <- w.add(number, int(root.Fd()), dir, below, mask) }:
		return <-done
	case <-w.closed:
		return os.ErrClosed
	}
}

func (w *Watcher) add(number, root int, dir, below string, mask uint32) error {
	name := path.Join(dir, below)
	parent, base, err := walk(root, dir, below)
	if err != nil {
		return &os.PathError{Op: "watch", Path: name, Err: err}
	}
	err = unix.Fchdir(parent)
	_ = unix.Close(parent)
	if err != nil {
		return &os.PathError{Op: "watch", Path: name, Err: err}
	}
	defer func() { _ = unix.Chdir("/") }() // so that no mount is in use
	w.mu.Lock()                            // before its first event is read
	defer w.mu.Unlock()
	if _, known := w.watches[number]; known { // else a guest could have numbers grow without end
		return &os.PathError{Op: "watch", Path: name, Err: os.ErrExist}
	}
	var wd int
	closed := w.raw.Control(func(fd uintptr) {
		wd, err = unix.InotifyAddWatch(int(fd), base, mask|unix.IN_DONT_FOLLOW|unix.IN_MASK_ADD)
	})
	if err := cmp.Or(closed, err); err != nil {
		return withLimit("fs.inotify.max_user_watches", unix.ENOSPC, &os.PathError{Op: "watch", Path: name, Err: err})
	}
	w.watches[number] = wd
	w.numbers[wd] = append(w.numbers[wd], number)
	return nil
}

// withLimit names the kernel's limit that an error is of, if it is that error.
func withLimit(name string, limit syscall.Errno, err error) error {
	if errors.Is(err, limit) {
		return fmt.Errorf("%w (%s)", err, name)
	}
	return err
}

// walk opens the directory to watch, with "." as the name in it, or the one that holds
// the file to watch.
func walk(root int, dir, below string) (parent int, name string, err error) {
	if parent, err = open(root, dir, below); !errors.Is(err, unix.ENOTDIR) {
		return parent, ".", err
	}
	if below == "" {
		parent, err = open(root, path.Dir(dir), "")
		return parent, path.Base(dir), err
	}
	parent, err = open(root, dir, path.Dir(below))
	return parent, path.Base(below), err
}

func open(root int, dir, below string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if below == "" || below == "." {
		return unix.Openat2(root, dir, &how)
	}
	top, err := unix.Openat2(root, dir, &how)
	if err != nil {
		return -1, err
	}
	defer unix.Close(top)
	how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS
	return unix.Openat2(top, below, &how)
}

// Remove ends a watch. Events that are on their way may still come.
func (w *Watcher) Remove(number int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, known := w.watches[number]
	if !known {
		return
	}
	delete(w.watches, number)
	w.numbers[wd] = slices.DeleteFunc(w.numbers[wd], func(n int) bool { return n == number })
	if len(w.numbers[wd]) == 0 {
		delete(w.numbers, wd)
		_ = w.raw.Control(func(fd uintptr) {
			_, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) // the file may have gone, and the watch with it
		})
	}
}

// Len is how many watches there are.
func (w *Watcher) Len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.watches)
}

// Read waits for events, and a little for more, and returns at most that many in their
// order. One that says what the one before says is left out.
//
// With ErrLost the events until then are returned, and Read may be called again.
func (w *Watcher) Read(most int) ([]guestproto.FileEvent, error) {
	if len(w.rest) == 0 {
		if err := w.fill(true); err != nil {
			return nil, err
		}
		select {
		case <-time.After(gather):
		case <-w.closed:
			return nil, os.ErrClosed
		}
		if err := w.fill(false); err != nil {
			return nil, err
		}
	}
	var events []guestproto.FileEvent
	for len(w.rest) > 0 && len(events) < most {
		e, rest, err := inotify.Next(w.rest)
		if err != nil {
			return events, err
		}
		w.rest = rest
		if e.Mask&unix.IN_Q_OVERFLOW != 0 {
			return events, ErrLost
		}
		events = w.numbered(events, e)
	}
	return events, nil
}

// fill reads what the kernel has, and waits if it shall and there is nothing.
func (w *Watcher) fill(wait bool) error {
	buf := make([]byte, inotify.BufferSize)
	var n int
	var err error
	closed := w.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), buf)
		return !wait || !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case closed != nil:
		return os.ErrClosed
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return os.NewSyscallError("read", err)
	}
	w.rest = append(w.rest, buf[:n]...)
	return nil
}

// numbered appends an event under each of the guest's numbers for the file.
func (w *Watcher) numbered(events []guestproto.FileEvent, e inotify.Event) []guestproto.FileEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, number := range w.numbers[e.Watch] {
		next := guestproto.FileEvent{Watch: number, Mask: e.Mask &^ unix.IN_IGNORED, Cookie: e.Cookie, Name: []byte(e.Name)}
		if next.Mask == 0 || slices.ContainsFunc(events[max(0, len(events)-1):], next.Equal) {
			continue
		}
		events = append(events, next)
	}
	if e.Mask&unix.IN_IGNORED != 0 { // the file has gone, and the watch with it
		for _, number := range w.numbers[e.Watch] {
			delete(w.watches, number)
		}
		delete(w.numbers, e.Watch)
	}
	return events
}
