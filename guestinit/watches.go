package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/inotify"
)

// A program in the container that watches a file (inotify(7)) hears of what the guest's
// kernel does to it. Of what the host does to a file of the share nobody would tell. So
// the monitor watches on the host what is watched here, and has the kernel tell it on
// (kernels/patches/fuse-server-events.patch).

// watches are the files of the share that processes in the guest watch.
type watches struct {
	mu sync.Mutex
	// control is the share's file "events" in fusectl; nil before somebody asks.
	control *os.File
	// own is an inotify instance that watches the same files. By it guestinit knows
	// what the guest itself has changed.
	own      int
	files    map[shareFile]*watchedFile
	found    map[shareFile]uint32 // and not yet among files
	byNumber map[int]*watchedFile
	byWd     map[int]*watchedFile // of own
	last     int                  // number given
	looked   time.Time
	lookTook time.Duration
	recent   map[change]time.Time // when the guest itself has changed something
	tooMany  bool                 // was said
}

// shareFile is a file as the kernel knows it.
type shareFile struct {
	device uint32           // minor number of its mount; a mount of the host's has one of its own
	handle [handleSize]byte // see name_to_handle_at(2)
}

// FUSE's handles are a node's number and a generation (fuse_encode_fh in fs/fuse/inode.c).
const (
	handleType = 0x81
	handleSize = 12
)

// node is the number that the kernel and the host have for the file.
func (f shareFile) node() uint64 {
	return uint64(binary.NativeEndian.Uint32(f.handle[:]))<<32 | uint64(binary.NativeEndian.Uint32(f.handle[4:]))
}

// watchedFile is one that the host watches, too.
type watchedFile struct {
	shareFile
	number, wd int
	mask       uint32
}

// change is what an event is about.
type change struct {
	number int
	name   string // empty for the watched file itself
}

const (
	// A look takes the longer the more processes there are. So the time until the next is
	// a multiple of what the last one took.
	leastLookInterval = 20 * time.Millisecond
	lookShare         = 20
	// staleAfter is how old a look may be when events come. Nothing else tells what
	// nobody watches any more.
	staleAfter = 10 * time.Second
	// ownPeriod is how long an event on the host may be the echo of what the guest has
	// done.
	ownPeriod = 2 * time.Second
)

// awaitWatches waits until other files are watched than the host knows of.
func (s *server) awaitWatches(*struct{}) (any, error) {
	w := &s.watches
	if err := w.open(); err != nil {
		return nil, err
	}
	for {
		time.Sleep(time.Until(w.lookAgain()))
		reply, err := w.look()
		if err != nil || len(reply.Added)+len(reply.Gone) > 0 || reply.TooMany {
			return reply, err
		}
		if _, err := w.control.Read(make([]byte, 32)); err != nil { // returns when a watch was made
			return nil, fmt.Errorf("await watches: %w", err)
		}
	}
}

// lookAgain is when the next look may be.
func (w *watches) lookAgain() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) > 0 {
		return time.Time{} // to look again finds the same
	}
	return w.looked.Add(max(leastLookInterval, lookShare*w.lookTook))
}

// open opens what the kernel has for this. No container's start pays for it: the host
// asks later.
func (w *watches) open() (err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.control != nil {
		return nil
	}
	control, err := openShareControl("events", unix.O_RDWR)
	if err != nil {
		return err
	}
	if w.own, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return errors.Join(os.NewSyscallError("inotify_init1", err), control.Close())
	}
	w.control = control
	w.files, w.byNumber, w.byWd = map[shareFile]*watchedFile{}, map[int]*watchedFile{}, map[int]*watchedFile{}
	w.recent = map[change]time.Time{}
	return nil
}

// mostPathBytes bounds the paths of a reply, which are longer on the wire.
const mostPathBytes = guestproto.MaxReply / 4

// look finds out what is watched, and what of that is news.
func (w *watches) look() (reply guestproto.WatchesReply, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) == 0 {
		if w.found, err = w.find(); err != nil {
			return reply, err
		}
		reply.Gone = w.keepOnly(w.found)
		maps.DeleteFunc(w.found, func(file shareFile, _ uint32) bool { return w.files[file] != nil })
	}
	if len(w.found) > 0 {
		err = onThread(func() error {
			w.addFound(&reply)
			return nil
		})
	}
	return reply, err
}

// addFound begins to watch what was found, as far as the reply has room for it. The
// calling thread is onThread's.
func (w *watches) addFound(reply *guestproto.WatchesReply) {
	mounts := shareMounts{}
	defer mounts.close()
	size := 0
	for file, mask := range w.found {
		if size > mostPathBytes {
			return
		}
		if len(w.files) == guestproto.MostWatches {
			reply.TooMany, w.tooMany = !w.tooMany, true
			clear(w.found)
			return
		}
		delete(w.found, file)
		added, err := w.add(file, mask, mounts)
		if err != nil {
			debugf("a file that is watched: %v", err) // it has gone, or is nothing of the share's
			continue
		}
		size += len(added.Path)
		reply.Added = append(reply.Added, added)
	}
}

// find is findWatches, and says when it was and how long it took.
func (w *watches) find() (map[shareFile]uint32, error) {
	began := time.Now()
	defer func() {
		w.looked, w.lookTook = time.Now(), time.Since(began)
		debugf("looked for watches: %v", w.lookTook)
	}()
	return findWatches()
}

// keepOnly forgets the files that are not among those found, or that are watched for more
// than the host knows of by now. It returns their numbers.
func (w *watches) keepOnly(found map[shareFile]uint32) (gone []int) {
	for file, known := range w.files {
		if found[file]&^known.mask != 0 || found[file] == 0 {
			w.forget(known)
			gone = append(gone, known.number)
		}
	}
	return gone
}

func (w *watches) forget(f *watchedFile) {
	delete(w.files, f.shareFile)
	delete(w.byNumber, f.number)
	delete(w.byWd, f.wd)
	_, _ = unix.InotifyRmWatch(w.own, uint32(f.wd)) // it may have gone with its file
}

// add begins to watch a file.
func (w *watches) add(file shareFile, mask uint32, mounts shareMounts) (added guestproto.Watch, err error) {
	fd, err := mounts.openFile(file)
	if err != nil {
		return added, err
	}
	defer unix.Close(fd)
	link := "/proc/self/fd/" + strconv.Itoa(fd)
	name, err := os.Readlink(link)
	if err != nil {
		return added, err
	}
	path, ok := strings.CutPrefix(name, guestproto.ShareDir+"/")
	if !ok || strings.HasSuffix(name, " (deleted)") {
		return added, fmt.Errorf("%s: not a name of the share's", name)
	}
	wd, err := unix.InotifyAddWatch(w.own, link, guestproto.WatchedEvents)
	if err != nil {
		return added, &os.PathError{Op: "watch", Path: name, Err: err}
	}
	w.last++
	f := &watchedFile{file, w.last, wd, mask}
	w.files[file], w.byNumber[f.number], w.byWd[wd] = f, f, f
	return guestproto.Watch{Number: f.number, Path: []byte(path), Mask: mask}, nil
}

// tellWatchers has the kernel tell what the host has seen, without what the guest itself
// has done.
func (s *server) tellWatchers(req *guestproto.FileEventsRequest) (any, error) {
	w := &s.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	var reply guestproto.FileEventsReply
	if w.control == nil {
		return nil, guestproto.Errorf(guestproto.CodeBadRequest, "nobody has asked for watches")
	}
	w.noteOwn(time.Now())
	for _, e := range req.Events {
		f := w.byNumber[e.Watch]
		if f == nil || time.Since(w.recent[change{e.Watch, string(e.Name)}]) < ownPeriod {
			continue
		}
		if err := w.tell(f, e); err != nil {
			debugf("an event of the host's: %v", err) // the file has gone
		}
	}
	w.noteOwn(time.Time{}) // what was just told shows there as well
	if time.Since(w.looked) > staleAfter {
		found, err := w.find()
		if err != nil {
			return nil, err
		}
		reply.Gone = w.keepOnly(found)
	}
	return reply, nil
}

// noteOwn takes what guestinit's own watches have, as what the guest did then.
func (w *watches) noteOwn(then time.Time) {
	buf := make([]byte, inotify.BufferSize)
	for {
		n, err := unix.Read(w.own, buf)
		if err != nil { // EAGAIN
			break
		}
		for b := buf[:n]; len(b) > 0; {
			var e inotify.Event
			if e, b, err = inotify.Next(b); err != nil {
				break
			}
			if f := w.byWd[e.Watch]; f != nil && !then.IsZero() {
				w.recent[change{f.number, e.Name}] = then
			}
		}
	}
	maps.DeleteFunc(w.recent, func(_ change, at time.Time) bool { return time.Since(at) > ownPeriod })
}

// tell writes an event to the kernel. A file that has lost its last name has gone for its
// watchers; virtiofsd has it open, so the host does not see it go.
func (w *watches) tell(f *watchedFile, e guestproto.FileEvent) error {
	mask := e.Mask & (guestproto.WatchedEvents | unix.IN_ISDIR)
	text := fmt.Sprintf("%d %d %x %d ", f.device, f.node(), mask, e.Cookie)
	if _, err := w.control.Write(append([]byte(text), e.Name...)); err != nil {
		return err
	}
	if len(e.Name) > 0 || mask&unix.IN_ATTRIB == 0 {
		return nil
	}
	var st unix.Stat_t
	err := onThread(func() error {
		mounts := shareMounts{}
		defer mounts.close()
		fd, err := mounts.openFile(f.shareFile)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fstat(fd, &st)
	})
	if err != nil || st.Nlink > 0 {
		return err
	}
	_, err = fmt.Fprintf(w.control, "%d %d %x 0 ", f.device, f.node(), unix.IN_DELETE_SELF)
	return err
}

// shareMounts are mounts of the share, opened, by device.
type shareMounts map[uint32]int

// openFile opens a file by its handle, as O_PATH: nobody who watches it hears of that.
// The kernel takes a mount opened like that as the working directory only. So the calling
// thread is onThread's, and has another one then.
func (m shareMounts) openFile(file shareFile) (int, error) {
	if len(m) == 0 {
		if err := m.open(); err != nil {
			return -1, err
		}
	}
	mount, ok := m[file.device]
	if !ok {
		return -1, fmt.Errorf("no mount of the share's is device 0:%d", file.device)
	}
	if err := unix.Fchdir(mount); err != nil {
		return -1, err
	}
	fd, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(handleType, file.handle[:]), unix.O_PATH|unix.O_CLOEXEC)
	return fd, os.NewSyscallError("open_by_handle_at", err)
}

func (m shareMounts) open() error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(guestproto.ShareDir))
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		if _, known := m[uint32(mount.Minor)]; known || mount.FSType != "virtiofs" || mount.Root != "/" {
			continue
		}
		fd, err := unix.Open(mount.Mountpoint, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it has gone
		}
		m[uint32(mount.Minor)] = fd
	}
	return nil
}

func (m shareMounts) close() {
	for _, fd := range m {
		_ = unix.Close(fd)
	}
}

// findWatches reads what the processes watch on FUSE, and for which of the events that
// the host can see. Processes come and go meanwhile.
func findWatches() (map[shareFile]uint32, error) {
	found := map[shareFile]uint32{}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	own := strconv.Itoa(os.Getpid())
	for _, process := range processes {
		if _, err := strconv.Atoi(process.Name()); err != nil || process.Name() == own {
			continue
		}
		dir := filepath.Join("/proc", process.Name())
		files, _ := os.ReadDir(filepath.Join(dir, "fd")) // it may have ended
		for _, file := range files {
			if kind, _ := os.Readlink(filepath.Join(dir, "fd", file.Name())); kind != "anon_inode:inotify" {
				continue
			}
			text, _ := os.ReadFile(filepath.Join(dir, "fdinfo", file.Name()))
			for line := range strings.Lines(string(text)) {
				if file, mask, ok := parseWatch(line); ok {
					found[file] |= mask
				}
			}
		}
	}
	return found, nil
}

// parseWatch reads a line of an inotify instance's fdinfo (proc(5)) that is about a file
// of FUSE.
func parseWatch(line string) (file shareFile, mask uint32, ok bool) {
	var device, events, kind uint64
	var err error
	for field := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(field, ":")
		switch key {
		case "sdev":
			device, err = strconv.ParseUint(value, 16, 32)
		case "mask":
			events, err = strconv.ParseUint(value, 16, 32)
		case "fhandle-type":
			kind, err = strconv.ParseUint(value, 16, 32)
		case "f_handle":
			ok = kind == handleType && len(value) == hex.EncodedLen(handleSize)
			if ok {
				_, err = hex.Decode(file.handle[:], []byte(value))
			}
		}
		if err != nil {
			return file, 0, false
		}
	}
	const minorBits = 20 // of the kernel's own dev_t
	file.device = uint32(device & (1<<minorBits - 1))
	mask = uint32(events) & guestproto.WatchedEvents
	return file, mask, ok && mask != 0
}
