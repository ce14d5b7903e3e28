package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/guesttext"
)

// DisableHugePages turns huge pages off for this process and its children
// (prctl(2)). An emulating QEMU asks for huge pages for its translations and some
// of its tables, and fills few of them. That costs 3 MiB for each VM.
func DisableHugePages(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		log.Debug("huge pages stay on", "error", err)
	}
}

// process is QEMU or virtiofsd: a child of the monitor's, or QEMU of its keeper's.
type process struct {
	name   string
	pid    int           // zero for a keeper's
	done   chan struct{} // closed when it has been reaped
	status string        // how it ended, once done is closed
	tail   *fault.Tail   // the end of what it wrote to stderr
	end    func()        // has it end; it may have ended already
	killed atomic.Bool   // by kill
	thread chan func()   // what the thread that it was forked from shall do; nil for a keeper's
}

// startProcess starts a helper process that dies with the monitor and sees files
// as fds 3 and up. The function confine runs on the thread that the process is
// forked from, takes away what it shall not have, and may have the fork do more.
//
// The parent-death signal is tied to the thread that forks (prctl(2)), so each
// child has a thread of the monitor's for itself, which stays as long as the child.
func startProcess(name, path string, args []string, confine func(*syscall.SysProcAttr) error, log *slog.Logger, files ...*os.File) (*process, error) {
	p := &process{name: name, done: make(chan struct{}), tail: &fault.Tail{Limit: 4 << 10}, thread: make(chan func())}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		defer close(p.done)
		cmd := exec.Command(path, args...)
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Dir = "/"
		cmd.ExtraFiles = files
		cmd.Stderr = p.tail
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		err := confine(cmd.SysProcAttr)
		if err == nil {
			err = fault.Wrap("start "+name, cmd.Start())
		}
		if err != nil {
			started <- err
			return
		}
		p.pid, p.end = cmd.Process.Pid, func() { _ = cmd.Process.Kill() }
		started <- nil
		ended := make(chan error)
		go func() { ended <- cmd.Wait() }()
		for {
			select {
			case f := <-p.thread:
				f()
			case err := <-ended:
				p.status = errText(err)
				p.report(log)
				return
			}
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// kill has the process end. It may have ended already.
func (p *process) kill() {
	p.killed.Store(true)
	p.end()
}

// report logs how the process has ended, once done is about to be closed. An end that
// nobody here asked for is an error, unless it says that all was well: QEMU's when
// the guest powers off, virtiofsd's when QEMU has gone.
func (p *process) report(log *slog.Logger) {
	level := slog.LevelError
	if p.killed.Load() || p.status == "exit status 0" {
		level = slog.LevelDebug
	}
	log.Log(context.Background(), level, p.name+" has ended", "pid", p.pid, "status", p.status, "stderr", guesttext.Harmless(p.tail.String()))
}

// onThread runs f on the thread that the process was forked from.
func (p *process) onThread(f func() error) error {
	result := make(chan error, 1)
	select {
	case p.thread <- func() { result <- f() }:
		return <-result
	case <-p.done:
		return fmt.Errorf("%s has ended: %s", p.name, p.status)
	}
}

// runAsBatch gives the calling thread, and what it executes, the policy
// SCHED_BATCH. A thread of this policy does not interrupt others when it wakes up
// (sched(7)). A thread whose policy is not the ordinary one keeps its policy.
//
// QEMU needs this, as the threads of its processors otherwise interrupt each other:
//
//   - One thread holds a spin lock of the guest's, and wakes another thread up.
//   - The other thread interrupts the first, and wants the same lock.
//   - The emulator then spends all its power on that wait, while the holder of the
//     lock does not run.
func runAsBatch() error {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return err
	}
	attr.Policy = unix.SCHED_BATCH
	return unix.SchedSetAttr(0, attr, 0)
}

// dropPrivileges takes the capability bounding set from the calling thread, so
// that what it executes has no capability though it is root, and no set-uid
// program gives it any.
func dropPrivileges() error {
	for c := 0; ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // past the kernel's last capability
		}
		if err != nil {
			return fault.Wrap("drop capabilities", err)
		}
	}
	return noNewPrivileges()
}

// noNewPrivileges is for the calling thread and what it executes.
func noNewPrivileges() error {
	return fault.Wrap("set no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

// lastWords tells how the process ended, to be appended to an error; nothing if
// it still runs. A process whose socket has just closed gets so long to be reaped.
func (p *process) lastWords(grace time.Duration) string {
	if p == nil {
		return ""
	}
	select {
	case <-p.done:
		said := guesttext.Harmless(strings.TrimSpace(p.tail.String()))
		if said == "" && strings.HasPrefix(p.status, "signal: killed") && !p.killed.Load() {
			said = fault.Killed
		}
		if said == "" {
			return fmt.Sprintf(" (%s: %s)", p.name, p.status)
		}
		return fmt.Sprintf(" (%s: %s: %s)", p.name, p.status, said)
	case <-time.After(grace):
		return ""
	}
}

// endedWell says whether the process has ended, and with the status 0.
func (p *process) endedWell() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return p.status == statusZero
	default:
		return false
	}
}

const (
	// reapGrace is how long the end of a process may follow that of its socket.
	reapGrace = 100 * time.Millisecond
	// exitGrace is the same for a QEMU that virtiofsd has ended after, as QEMU has let
	// go of it. It has the guest's memory to give back then.
	exitGrace = 2 * time.Second
)

// statusZero is the status of a process that has ended well.
const statusZero = "exit status 0"

func errText(err error) string {
	if err == nil {
		return statusZero
	}
	return err.Error()
}

// quoteCommand is a command line that can be pasted into a shell.
func quoteCommand(path string, args []string) string {
	var b strings.Builder
	b.WriteString(path)
	for _, a := range args {
		b.WriteByte(' ')
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$&;|<>()*?#~`") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		b.WriteString(a)
	}
	return b.String()
}
