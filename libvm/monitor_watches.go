package libvm

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/guesttext"
	"github.com/boxlite-oci/boxlite/libvm/hostwatch"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// A program in the guest that watches a file hears what the guest does to it. What the
// host does, the monitor hears: it watches the file as well, below its own root, which is
// the container's.

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
	f := &fileFollower{monitor: m, shown: shownFiles(m.cfg.Plan)}
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
	shown   []shownFile
	watcher *hostwatch.Watcher // nil before the first watch
	warned  bool               // of a file that cannot be watched
}

// shownFile is a place of the share that the container has as a mount, or as its root.
type shownFile struct{ inShare, inContainer string }

// shownFiles lists the container's places of the share, the longest names first.
func shownFiles(p *plan.Plan) []shownFile {
	shown := []shownFile{{plan.RootfsName, "/"}}
	for _, m := range p.Guest.Mounts {
		if name, ok := strings.CutPrefix(m.Source, guestproto.ShareDir+"/"); ok {
			shown = append(shown, shownFile{name, path.Join("/", m.Destination)})
		}
	}
	slices.SortFunc(shown, func(a, b shownFile) int { return len(b.inShare) - len(a.inShare) })
	return shown
}

// locate finds a file of the share in the container.
func locate(shown []shownFile, name string) (dir, below string, ok bool) {
	for _, s := range shown {
		if name == s.inShare {
			return s.inContainer, "", true
		}
		if below, ok := strings.CutPrefix(name, s.inShare+"/"); ok {
			return s.inContainer, below, true
		}
	}
	return "", "", false
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
	dir, below, ok := locate(f.shown, string(w.Path))
	if !ok {
		f.log.Debug("the guest watches what is not the container's own", "path", guesttext.Harmless(string(w.Path)))
		return nil
	}
	if f.watcher == nil {
		if f.watcher, err = hostwatch.New(); err != nil {
			return err
		}
		go f.tellOn(f.watcher)
	}
	if f.watcher.Len() >= guestproto.MostWatches {
		return errTooManyWatches
	}
	return f.watcher.Add(w.Number, dir, below, w.Mask&guestproto.WatchedEvents)
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
