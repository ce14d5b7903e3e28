package main

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// A reaper waits for every child of PID 1, in one place: the processes that
// guestinit forked, and whatever is reparented to it.
type reaper struct {
	mu       sync.Mutex
	children map[int]chan unix.WaitStatus
	// forked wakes run when there are children again.
	forked chan struct{}
}

func newReaper() *reaper {
	return &reaper{children: map[int]chan unix.WaitStatus{}, forked: make(chan struct{}, 1)}
}

// start calls fork and returns a channel that gets the child's wait status.
// No child is reaped while fork runs, so none is reaped unknown.
func (r *reaper) start(fork func() (pid int, err error)) (<-chan unix.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return nil, err
	}
	ended := make(chan unix.WaitStatus, 1)
	r.children[pid] = ended
	select {
	case r.forked <- struct{}{}:
	default:
	}
	return ended, nil
}

// run reaps for ever.
func (r *reaper) run() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			<-r.forked
		case err != nil: // EINTR
		case status.Exited() || status.Signaled():
			r.mu.Lock()
			if ended := r.children[pid]; ended != nil {
				ended <- status
				delete(r.children, pid)
			}
			r.mu.Unlock()
		}
	}
}
