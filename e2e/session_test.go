package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A session is a running command that a case talks to, over pipes or a terminal.
type session struct {
	t      *testing.T
	cmd    *exec.Cmd
	cancel context.CancelFunc
	in     io.WriteCloser
	pty    *os.File // master; nil without a terminal
	ended  chan struct{}
	code   int // valid when ended is closed

	mu     sync.Mutex
	grown  *sync.Cond
	output string // stdout and stderr as they came
	seen   int    // what expect has consumed of output
	closed bool
}

// session starts the engine's command with args over pipes.
func (e *env) session(args ...string) *session {
	e.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	return startSession(e.T, e.eng.command(ctx, args...), cancel)
}

// terminal starts the engine's command with args on a terminal of 24 rows and 80 columns.
func (e *env) terminal(args ...string) *session {
	e.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	return startOnTerminal(e.T, e.eng.command(ctx, args...), cancel)
}

func newSession(t *testing.T, cmd *exec.Cmd, cancel context.CancelFunc) *session {
	s := &session{t: t, cmd: cmd, cancel: cancel, ended: make(chan struct{})}
	s.grown = sync.NewCond(&s.mu)
	t.Cleanup(s.kill)
	return s
}

func startSession(t *testing.T, cmd *exec.Cmd, cancel context.CancelFunc) *session {
	t.Helper()
	s := newSession(t, cmd, cancel)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in = in
	cmd.Stdout, cmd.Stderr = s, s
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go s.wait()
	return s
}

func startOnTerminal(t *testing.T, cmd *exec.Cmd, cancel context.CancelFunc) *session {
	t.Helper()
	s := newSession(t, cmd, cancel)
	master, slave, err := openPTY()
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	s.pty, s.in = master, master
	s.resize(24, 80)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, true, 0
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(s, master) // EIO when the last slave is closed
		s.wait()
	}()
	return s
}

func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	return master, slave, err
}

func (s *session) wait() {
	_ = s.cmd.Wait() // the code says it
	s.code = s.cmd.ProcessState.ExitCode()
	s.mu.Lock()
	s.closed = true
	s.grown.Broadcast()
	s.mu.Unlock()
	close(s.ended)
}

// Write collects output.
func (s *session) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.output += string(p)
	s.grown.Broadcast()
	return len(p), nil
}

// expect waits for text in what came after the last expect, and returns what came up to its end.
func (s *session) expect(text string) string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if at := strings.Index(s.output[s.seen:], text); at >= 0 {
			part := s.output[s.seen : s.seen+at+len(text)]
			s.seen += at + len(text)
			return part
		}
		if s.closed { // by its end, at the latest by the deadline
			s.t.Fatalf("%s: ended (%v) without %q; output: %q", strings.Join(s.cmd.Args, " "), s.cmd.ProcessState, text, clip(s.output))
		}
		s.grown.Wait()
	}
}

func (s *session) send(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		s.t.Fatalf("%s: send %q: %v", strings.Join(s.cmd.Args, " "), text, err)
	}
}

func (s *session) resize(rows, cols uint16) {
	s.t.Helper()
	if err := unix.IoctlSetWinsize(int(s.pty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		s.t.Fatal(err)
	}
}

// resizeUntil resizes until the program has printed text: docker sends the size at start and watches for changes only
// after that, so that one in between is lost to it.
func (s *session) resizeUntil(rows, cols uint16, text string) {
	s.t.Helper()
	for try := range uint16(20) {
		s.resize(rows, cols+try%2) // no signal comes of setting what is set
		s.resize(rows, cols)
		for giveUp := time.Now().Add(time.Second); time.Now().Before(giveUp); time.Sleep(10 * time.Millisecond) {
			if strings.Contains(s.text(), text) {
				return
			}
		}
	}
	s.t.Fatalf("%s: no %q after resizing; output: %q", strings.Join(s.cmd.Args, " "), text, s.text())
}

// end waits for the command's end and returns its exit code, -1 if a signal or the deadline ended it.
func (s *session) end() int {
	<-s.ended
	return s.code
}

// hasEnded says whether the command has ended.
func (s *session) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// text is all output so far.
func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.output
}

// kill ends the command if it still runs.
func (s *session) kill() {
	s.cancel()
	<-s.ended
	if s.pty != nil {
		_ = s.pty.Close() // closed already by an earlier kill
	}
}
