package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// flush gives the host what programs have written into shared mappings, which the
// kernel otherwise does within some two seconds (see kernelParameters). What they
// write with system calls the host has when the call is back.
//
// It waits for the kernel's counts and not for sync(2), which also has the host's
// file systems write to their disks. A file system of the container's own may keep
// sync waiting for ever.
func (s *server) flush(*struct{}) (any, error) {
	var done chan struct{}
	for end := time.Now().Add(flushPatience); ; time.Sleep(flushPace) {
		pages, err := unwrittenPages()
		if err != nil || pages == 0 {
			return nil, err
		}
		if done == nil {
			done = s.sync()
		}
		select {
		case <-done:
			return nil, nil
		default:
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("%d pages are not written after %s", pages, flushPatience)
		}
	}
}

const (
	// flushPatience is less than the host's (libvm's flushPatience).
	flushPatience = 4 * time.Second
	flushPace     = 5 * time.Millisecond
)

// sync starts sync(2). The channel is closed when it is back. While one does not come
// back there is no other, and the channel is never closed.
func (s *server) sync() chan struct{} {
	done := make(chan struct{})
	if s.syncing.TryLock() {
		go func() {
			unix.Sync()
			s.syncing.Unlock()
			close(done)
		}()
	}
	return done
}

// unwrittenPages is how many pages of files the kernel has to write, or is writing
// (Documentation/filesystems/proc.rst, vmstat). Processors keep part of the counts for
// themselves until somebody reads stat_refresh.
func unwrittenPages() (n int, err error) {
	if _, err := readFile("/proc/sys/vm/stat_refresh"); err != nil {
		return 0, err
	}
	text, err := readFile("/proc/vmstat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !slices.Contains([]string{"nr_dirty", "nr_writeback", "nr_writeback_temp"}, name) {
			continue
		}
		pages, err := strconv.Atoi(value)
		if err != nil {
			return 0, fmt.Errorf("/proc/vmstat: %q", line)
		}
		n += pages
	}
	return n, nil
}
