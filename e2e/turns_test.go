package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Emulated VMs start as many at a time as there are processors. A container that runs holds nobody up.
func TestStartsTakeTurns(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		h.flags = append(h.flags, "--accel", "tcg")
		running := h.bundle("running", "echo up; sleep 1000", nil)
		run := h.cmdline("run", "--bundle", running.dir, running.id)
		s := startSession(e.T, run, func() { _ = run.Process.Kill() })
		s.expect("up\n")
		turns, err := os.OpenFile("/run/boxlite-turns", os.O_RDWR, 0)
		h.noErr(err)
		defer turns.Close()
		for place := range runtime.NumCPU() {
			if err := unix.FcntlFlock(turns.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(place), Len: 1}); err != nil {
				e.Errorf("place %d: %v while no container starts", place, err)
			}
		}

		waiting := h.bundle("waiting", "true", nil)
		c := h.cmdline("create", "--bundle", waiting.dir, waiting.id)
		h.noErr(c.Start())
		st, err := turns.Stat()
		h.noErr(err)
		waiter := regexp.MustCompile(fmt.Sprintf(`-> OFDLCK .*:%d \d`, st.Sys().(*syscall.Stat_t).Ino))
		err = waitFor("create waits for its turn", func() bool {
			locks, err := os.ReadFile("/proc/locks")
			return err == nil && waiter.Match(locks)
		})
		if err != nil {
			e.Error(err)
		}
		if found := h.processesOf(waiting); len(found) > 0 {
			e.Errorf("processes of a container that waits for its turn: %v", found)
		}
		h.noErr(turns.Close())
		h.noErr(c.Wait())
		h.must("kill", running.id, "KILL")
		h.want("exit code", itoa(s.end()), "137")
	})
}

// An emulated VM's processors do not interrupt each other on the host.
func TestQEMUIsBatch(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		h.flags = append(h.flags, "--accel", "tcg")
		b := h.bundle("batch", "sleep 1000", nil)
		h.create(b)
		seen := map[string]int{}
		for pid, comm := range h.processesOf(b) {
			want := uint32(unix.SCHED_NORMAL)
			switch {
			case strings.HasPrefix(comm, "qemu-system"):
				want = unix.SCHED_BATCH
			case comm != "virtiofsd":
				continue // the monitor's thread that QEMU was forked from has QEMU's policy
			}
			tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
			h.noErr(err)
			for _, task := range tasks {
				tid, err := strconv.Atoi(filepath.Base(task))
				h.noErr(err)
				attr, err := unix.SchedGetAttr(tid, 0)
				h.noErr(err)
				seen[comm]++
				if attr.Policy != want {
					e.Errorf("scheduling policy of a thread of %s = %d, want %d", comm, attr.Policy, want)
				}
			}
		}
		if seen["virtiofsd"] == 0 || len(seen) != 2 {
			e.Errorf("threads seen: %v", seen)
		}
	})
}
