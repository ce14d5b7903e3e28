// Package turn makes emulated VMs that start at the same moment take turns.
//
// As many start at a time as there are processors. With twenty VMs on two
// processors all are ready sooner than if each got a tenth of a processor, and most
// of them much sooner. The reason is this: while the host's processor does
// something else, one processor of a VM keeps the VM's other processor waiting. The
// emulator cannot tell that wait from work.
package turn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a turn.
const (
	// Patience is how long a start waits for its turn at most.
	Patience = 20 * time.Second
	// Limit is how long a turn lasts at most. A hook that runs in a turn may do
	// what it likes, and even start another container.
	Limit = 5 * time.Second
)

// Take waits for a turn: until fewer than places others hold one at the file called
// path. It makes the file if it is missing. It is an error if patience is over
// before that.
//
// The caller calls release at the turn's end. The lock goes with the process that
// holds it, so nobody waits for a process that was killed.
func Take(path string, places int, patience time.Duration) (release func(), err error) {
	return lockTurns(context.Background(), path, patience, func(fd uintptr) error { return lockPlace(fd, places) })
}

// AwaitCalm waits until nobody has a turn. It is an error if ctx or patience is
// over before that.
func AwaitCalm(ctx context.Context, path string, patience time.Duration) error {
	release, err := lockTurns(ctx, path, patience, func(fd uintptr) error {
		const toEnd = 0
		return lockBytes(fd, unix.F_OFD_SETLKW, 0, toEnd)
	})
	if err != nil {
		return err
	}
	release()
	return nil
}

func lockTurns(ctx context.Context, path string, patience time.Duration, lock func(fd uintptr) error) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("wait for a turn: %w", err)
	}
	end := sync.OnceFunc(func() { _ = f.Close() })
	fd := f.Fd()
	locked := make(chan error, 1)
	go func() { locked <- lock(fd) }()
	select {
	case err = <-locked:
	case <-ctx.Done():
		go func() { // not before: the wait is for a descriptor, which may be another file's once it is closed
			<-locked
			end()
		}()
		return nil, fmt.Errorf("wait for a turn: %w", ctx.Err())
	}
	if err != nil {
		end()
		return nil, fmt.Errorf("wait for a turn: %w", err)
	}
	return end, nil
}

// lockPlace locks one of the file's first bytes: one that is free, else it waits
// for the one that its process id chooses. Unlike flock's, such locks
// (F_OFD_SETLK, fcntl(2)) can be as many as there are bytes.
func lockPlace(fd uintptr, places int) error {
	for place := range places {
		if err := lockBytes(fd, unix.F_OFD_SETLK, place, 1); !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	return lockBytes(fd, unix.F_OFD_SETLKW, os.Getpid()%places, 1)
}

func lockBytes(fd uintptr, command, start, length int) error {
	for {
		err := unix.FcntlFlock(fd, command, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(start), Len: int64(length)})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
