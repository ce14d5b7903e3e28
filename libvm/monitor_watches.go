package libvm

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/guesttext"
	"github.com/boxlite-oci/boxlite/libvm/hostwatch"
)

// A program in the guest that watches a file hears what the guest does to it. What the
// host does, the monitor hears: it watches the file as well, below its own root, which is
// the container's, or below that of a member's stand-in, which has given it away.

const (
	// watchesDelay is how long a container has run before the guest is asked what it
	// watches: one that ends before costs nothing.
	watchesDelay = 300 * time.Millisecond
	// mostFileEvents bounds the events of a request, which is 400 bytes for each at most.
	mostFileEvents = 1024
)

// followFiles tells the guest's processes what the host changes of the files that they
// watch, until the VM ends.
func (m *monitor) followFiles() {
	select {
	case <-m.lost:
		return
	case <-time.After(watchesDelay):
	}
	m.own.showFiles(nil, m.cfg.Plan.Guest)
	defer m.own.hideFiles()
	f := &fileFollower{monitor: m}
	defer f.close()
	for {
		var news guestproto.WatchesReply
		if err := m.guest.call(guestproto.OpWatches, nil, &news, untilTheEnd); err != nil {
			m.log.Debug("follow the guest's watches", "error", err)
			return
		}
		if len(news.Added)+len(news.Gone) == 0 && !news.TooMany {
			m.log.Debug("follow the guest's watches", "error", "a reply without news")
			return
		}
		f.follow(news)
		select {
		case <-m.lost:
			return
		case <-time.After(watchesInterval):
		}
	}
}

// watchesInterval is the least between two looks at a guest's watches, whatever it says.
const watchesInterval = 50 * time.Millisecond

// fileFollower watches on the host what the guest watches.
type fileFollower struct {
	*monitor
	watcher *hostwatch.Watcher // nil before the first watch
	warned  bool               // of a file that cannot be watched
}

// shownFiles are the files of the share that a container has.
type shownFiles struct {
	root   *os.File // a member's on the host; nil for the monitor's own
	places []shownPlace
}

// open opens the container's root on the host. The caller closes it.
func (s shownFiles) open() (*os.File, error) {
	if s.root == nil {
		return openRoot()
	}
	fd, err := unix.FcntlInt(s.root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

// shownPlace is a place of the share that the container has as a mount, or as its root.
type shownPlace struct{ inShare, inContainer string }

// openRoot opens the root of the calling process, for hostwatch.
func openRoot() (*os.File, error) {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/", Err: err}
	}
	return os.NewFile(uintptr(fd), "/"), nil
}

// placesOf lists the container's places of the share, the longest names first.
func placesOf(guest *specs.Spec) (places []shownPlace) {
	add := func(source, destination string) {
		if name, ok := strings.CutPrefix(source, guestproto.ShareDir+"/"); ok {
			places = append(places, shownPlace{name, path.Join("/", destination)})
		}
	}
	add(guest.Root.Path, "/")
	for _, m := range guest.Mounts {
		add(m.Source, m.Destination)
	}
	slices.SortFunc(places, func(a, b shownPlace) int { return len(b.inShare) - len(a.inShare) })
	return places
}

// locate finds a file of the share in the container.
func (s shownFiles) locate(name string) (dir, below string, ok bool) {
	for _, p := range s.places {
		if name == p.inShare {
			return p.inContainer, "", true
		}
		if below, ok := strings.CutPrefix(name, p.inShare+"/"); ok {
			return p.inContainer, below, true
		}
	}
	return "", "", false
}

// locate finds a file of the share in a container that has it. Members have volumes in
// common: then it is any of them, as a watch outlives the way to its file. The caller
// closes the root.
func (f *fileFollower) locate(name string) (root *os.File, dir, below string, err error) {
	containers := append(f.members(), f.own)
	f.mu.Lock() // against hideFiles
	defer f.mu.Unlock()
	for _, c := range containers {
		dir, below, ok := c.shown.locate(name)
		if ok {
			root, err = c.shown.open()
			return root, dir, below, err
		}
	}
	return nil, "", "", nil
}

// showFiles lets the host's changes of the container's files be followed, and keeps a
// member's root until hideFiles. The monitor's own is open only while a file is looked
// for, as who enters the container sees the monitor's descriptors.
func (m *tenant) showFiles(root *os.File, guest *specs.Spec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shown = shownFiles{root, placesOf(guest)}
}

// hideFiles is for a container that has ended.
func (m *tenant) hideFiles() {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.shown.root.Close() // nothing was written; nil for the monitor's own
	m.shown = shownFiles{}
}

// follow watches what the guest watches now, and no longer what has gone.
func (f *fileFollower) follow(news guestproto.WatchesReply) {
	f.letGo(news.Gone)
	if news.TooMany {
		f.warn(errTooManyWatches)
	}
	for _, w := range news.Added {
		if err := f.add(w); err != nil && !errors.Is(err, unix.ENOENT) { // it has gone meanwhile
			f.warn(err)
		}
	}
}

var errTooManyWatches = fmt.Errorf("more than %d files are watched", guestproto.MostWatches)

// warn says once that a file is not watched, whatever the guest does then.
func (f *fileFollower) warn(err error) {
	if !f.warned {
		f.log.Warn("not all that the host changes is told to those who watch it in the container", "error", fault.Quiet(guesttext.Harmless(err.Error())))
	}
	f.warned = true
}

// add watches a file that the guest names.
func (f *fileFollower) add(w guestproto.Watch) (err error) {
	root, dir, below, err := f.locate(string(w.Path))
	if err != nil {
		return err
	}
	if root == nil {
		f.log.Debug("the guest watches what none of its containers has", "path", guesttext.Harmless(string(w.Path)))
		return nil
	}
	defer root.Close()
	if f.watcher == nil {
		if f.watcher, err = hostwatch.New(); err != nil {
			return err
		}
		go f.tellOn(f.watcher)
	}
	if f.watcher.Len() >= guestproto.MostWatches {
		return errTooManyWatches
	}
	return f.watcher.Add(w.Number, root, dir, below, w.Mask&guestproto.WatchedEvents)
}

func (f *fileFollower) letGo(numbers []int) {
	if f.watcher == nil {
		return
	}
	for _, n := range numbers {
		f.watcher.Remove(n)
	}
}

func (f *fileFollower) close() {
	if f.watcher != nil {
		_ = f.watcher.Close() // nothing was written
	}
}

// tellOn tells the guest what has changed until the watcher is closed. While the guest is
// paused the kernel keeps the events, as for a container's process that is frozen.
func (f *fileFollower) tellOn(w *hostwatch.Watcher) {
	for {
		events, err := w.Read(mostFileEvents)
		if errors.Is(err, hostwatch.ErrLost) {
			f.log.Warn("some of what the host has changed is not told to those who watch it in the container", "error", err)
		} else if err != nil {
			return
		}
		var reply guestproto.FileEventsReply
		if err := f.askWhenRunning(guestproto.OpFileEvents, guestproto.FileEventsRequest{Events: events}, &reply); err != nil {
			f.log.Debug("tell the guest what has changed", "error", err) // it has ended, or is very busy
			continue
		}
		for _, n := range reply.Gone {
			w.Remove(n)
		}
	}
}

// askWhenRunning makes a request of the guest, and waits while that is paused.
func (f *fileFollower) askWhenRunning(op guestproto.Op, body, reply any) error {
	for {
		err := f.own.ask(op, body, reply)
		if !errors.Is(err, ErrPaused) || !f.paused.gate.await(f.lost) {
			return err
		}
	}
}
