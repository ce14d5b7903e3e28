package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// An oomWatch counts the processes of a cgroup that the kernel has killed for
// lack of memory.
type oomWatch struct {
	mu    sync.Mutex
	kills uint64
	err   error         // why it counts no more
	more  chan struct{} // closed and replaced when any of it has changed

	changes *os.File
}

// watchOOM begins to count for a cgroup in which nothing has been killed yet.
func watchOOM(g *cgroup) (*oomWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	// The kernel's cgroup v2 says: such a file is modified when a value changes.
	path := filepath.Join(g.dir, memoryEvents)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", path, err), changes.Close())
	}
	w := &oomWatch{more: make(chan struct{}), changes: changes}
	go func() {
		buf := make([]byte, 4096)
		for {
			_, err := changes.Read(buf)
			if err == nil {
				w.note(g.oomKills(), nil)
				continue
			}
			w.note(0, fmt.Errorf("watch %s: %w", path, err))
			return
		}
	}()
	return w, nil
}

// close ends the counting, which is an error to those who await.
func (w *oomWatch) close() { _ = w.changes.Close() }

func (w *oomWatch) note(kills uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if kills <= w.kills && err == nil {
		return
	}
	w.kills, w.err = max(kills, w.kills), err
	close(w.more)
	w.more = make(chan struct{})
}

// await returns the count once it is more than seen.
func (w *oomWatch) await(seen uint64) (uint64, error) {
	for {
		w.mu.Lock()
		kills, err, more := w.kills, w.err, w.more
		w.mu.Unlock()
		if kills > seen || err != nil {
			return kills, err
		}
		<-more
	}
}

// awaitOOM answers once the kernel has killed more processes of the container
// for lack of memory than the request has seen.
func (c *container) awaitOOM(req *guestproto.OOMRequest) (any, error) {
	if c.oom == nil {
		return nil, errors.New("this kernel does not tell of lack of memory")
	}
	kills, err := c.oom.await(req.Seen)
	if err != nil {
		return nil, err
	}
	return &guestproto.OOMReply{Kills: kills}, nil
}

const memoryEvents = "memory.events"

// oomKills is how many processes of the cgroup and of those below it the kernel
// has killed for lack of memory.
func (g *cgroup) oomKills() uint64 {
	text, err := readFile(filepath.Join(g.dir, memoryEvents))
	if err != nil {
		return 0 // a kernel that limits no memory
	}
	_, rest, _ := strings.Cut("\n"+text, "\noom_kill ")
	number, _, _ := strings.Cut(rest, "\n")
	kills, _ := strconv.ParseUint(number, 10, 64)
	return kills
}
