package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// virtiofsd keeps a descriptor for every file that the guest's kernel knows, and
// the kernel knows a file until it is short of memory, which may be long after
// virtiofsd has come to its limit; then opening and closing files fails (EMFILE,
// EBADF). Nothing tells how many there are, so guestinit looks at the kernel's
// count of inodes, and has it forget those that nobody uses well before that.

// filesPerSecond is faster than a guest can look files up.
const filesPerSecond = 50_000

// Bounds on the time between two looks at the count.
const (
	lookSoonest = 20 * time.Millisecond
	lookLatest  = 10 * time.Second
)

// forgetFiles keeps the number of known files below limit for as long as the
// guest lives. What is in use cannot be forgotten, as a process cannot have more
// files open than its own limit.
func forgetFiles(limit int) {
	for {
		known, err := knownFiles()
		if err != nil {
			logf("count inodes: %v", err)
			return
		}
		wait := untilNextLook(known, limit)
		if known > limit/2 {
			// With the pages, as an inode that has some cannot be forgotten.
			if err := writeFile("/proc/sys/vm/drop_caches", "3"); err != nil {
				logf("forget files: %v", err)
				return
			}
			debugf("forgot files: there were %d, the limit is %d", known, limit)
			if known, err = knownFiles(); err == nil && known > limit/2 {
				wait = max(wait, time.Second/2) // they are in use: another round at once would do no better
			}
		}
		time.Sleep(wait)
	}
}

// untilNextLook is how long no guest takes to come to the limit.
func untilNextLook(known, limit int) time.Duration {
	room := time.Duration(limit-known) * time.Second / filesPerSecond
	return min(max(room, lookSoonest), lookLatest)
}

// knownFiles counts the inodes of all file systems, which are those of the share
// and some hundred others.
func knownFiles() (int, error) {
	text, err := os.ReadFile("/proc/sys/fs/inode-nr") // allocated, free
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text))
	if len(fields) != 2 {
		return 0, fmt.Errorf("inode-nr: %q", text)
	}
	return strconv.Atoi(fields[0])
}
