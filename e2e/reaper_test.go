package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A reaper plays the part of containerd's shim and of conmon: a process that runs a command of the runtime, is the
// subreaper of what the command leaves behind, and learns from waitpid how that ends.
type reaper struct {
	t    *testing.T
	cmd  *exec.Cmd
	ends chan reaped
	seen map[int]reaped
}

// reaped is how a process below a reaper ended.
type reaped struct {
	Pid    int
	Code   int // exit code; -1 when a signal killed it
	Signal syscall.Signal
}

// String is the status as callers report it: 128+signal for a kill.
func (r reaped) String() string {
	if r.Code < 0 {
		return fmt.Sprintf("killed by %v", r.Signal)
	}
	return fmt.Sprintf("exit code %d", r.Code)
}

// reaperJob is the command to run. It crosses to the reaper's process in jobVar.
type reaperJob struct {
	Args []string
	Env  []string
	Dir  string
}

const jobVar = "E2E_REAPER_JOB"

// reportFD is where the reaper's process writes a reaped per line. The command's extra files follow it, and the command
// gets them from 3 up.
const reportFD = 3

// startReaper runs the job with stdio, of which nil is /dev/null, and extra files as descriptors from 3 up. The caller
// still owns and closes its ends.
func startReaper(t *testing.T, job reaperJob, stdio [3]*os.File, extra ...*os.File) *reaper {
	t.Helper()
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	reports, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r := &reaper{t: t, ends: make(chan reaped, 64), seen: map[int]reaped{}}
	r.cmd = exec.Command("/proc/self/exe")
	r.cmd.Env = append(os.Environ(), stageVar+"=reaper", jobVar+"="+string(text))
	if stdio[0] != nil {
		r.cmd.Stdin = stdio[0]
	}
	if stdio[1] != nil {
		r.cmd.Stdout = stdio[1]
	}
	if stdio[2] != nil {
		r.cmd.Stderr = stdio[2]
	}
	r.cmd.ExtraFiles = append([]*os.File{w}, extra...)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close() // the reaper has its own
	go func() {
		defer close(r.ends)
		defer reports.Close()
		for lines := bufio.NewScanner(reports); lines.Scan(); {
			var end reaped
			if err := json.Unmarshal(lines.Bytes(), &end); err != nil {
				panic(err)
			}
			r.ends <- end
		}
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it ends by itself with its last child
		_ = r.cmd.Wait()
	})
	return r
}

// wait returns how the process ended; pid 0 stands for the command itself.
func (r *reaper) wait(pid int) reaped {
	r.t.Helper()
	for giveUp := time.After(deadline); ; {
		if end, ok := r.seen[pid]; ok {
			return end
		}
		select {
		case end, ok := <-r.ends:
			if !ok {
				r.t.Fatalf("process %d is no child of the reaper; it saw %v end", pid, r.seen)
			}
			r.seen[end.Pid] = end
		case <-giveUp:
			r.t.Fatalf("process %d has not ended; the reaper saw %v end", pid, r.seen)
		}
	}
}

// reaperStage is the reaper's process.
func reaperStage() int {
	var job reaperJob
	if err := json.Unmarshal([]byte(os.Getenv(jobVar)), &job); err != nil {
		return complain(err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return complain(err)
	}
	unix.CloseOnExec(reportFD)
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	var extra []int
	for fd := reportFD + 1; ; fd++ {
		// What was inherited is not close-on-exec; the first that is, or is none, ends the extra files.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
			break
		}
		extra = append(extra, fd)
		files = append(files, os.NewFile(uintptr(fd), "extra"))
	}
	command, err := os.StartProcess(job.Args[0], job.Args, &os.ProcAttr{Env: job.Env, Dir: job.Dir, Files: files})
	if err != nil {
		return complain(err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return complain(err)
	}
	// Hold nothing that a case waits to see closed.
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return complain(err)
		}
	}
	for _, fd := range extra {
		_ = unix.Close(fd) // ours since the start
	}
	reports := json.NewEncoder(os.NewFile(reportFD, "reports"))
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return 0 // no child is left
		}
		end := reaped{Pid: pid, Code: status.ExitStatus()}
		if status.Signaled() {
			end.Code, end.Signal = -1, status.Signal()
		}
		if pid == command.Pid {
			end.Pid = 0
		}
		if err := reports.Encode(end); err != nil {
			return 1 // the case is over
		}
	}
}
