package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// relayBuffer is what one read of a relay takes: as much as a pipe of pipeSize
// holds, and a fraction of a stream's window.
const (
	relayBuffer = 128 << 10
	pipeSize    = 128 << 10
)

// stdio is guestinit's side of a process's standard streams.
type stdio struct {
	// child are the process's own descriptors. guestinit keeps them until the
	// exec, so that a failed exec can be reported on them.
	child [3]*os.File
	// terminal is the master of the process's pty, or nil.
	terminal *os.File

	mu       sync.Mutex
	ends     map[guestproto.Stream]*os.File // guestinit's ends; gone once attached
	relays   sync.WaitGroup                 // of stdout and stderr
	ended    chan struct{}                  // closed when the process has ended
	attached int                            // outputs that have been asked for
}

func newStdio() *stdio {
	return &stdio{ends: map[guestproto.Stream]*os.File{}, ended: make(chan struct{})}
}

// openPipes gives a process without a terminal its three pipes.
func (s *stdio) openPipes() error {
	for i, name := range []guestproto.Stream{guestproto.Stdin, guestproto.Stdout, guestproto.Stderr} {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("make pipe for %s: %w", name, err)
		}
		ours, theirs := fds[0], fds[1]
		if name == guestproto.Stdin {
			ours, theirs = theirs, ours
		}
		// The default size will do where the limit of all pipes is reached.
		_, _ = unix.FcntlInt(uintptr(ours), unix.F_SETPIPE_SZ, pipeSize)
		s.child[i] = os.NewFile(uintptr(theirs), string(name))
		if err := unix.SetNonblock(ours, true); err != nil {
			return err
		}
		s.ends[name] = os.NewFile(uintptr(ours), string(name))
	}
	return nil
}

// chownPipes makes the pipes those of the process's user, who may then open
// /dev/stdout anew.
func (s *stdio) chownPipes(uid, gid int) error {
	if uid == 0 && gid == 0 {
		return nil
	}
	for _, theirs := range s.child {
		if err := theirs.Chown(uid, gid); err != nil {
			return fmt.Errorf("give pipe for %s to user %d: %w", theirs.Name(), uid, err)
		}
	}
	return nil
}

// dropStdin closes the pipe for stdin: nobody will write into it.
func (s *stdio) dropStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.ends[guestproto.Stdin].Close()
	delete(s.ends, guestproto.Stdin)
}

// setStdin gives the process a copy of file in place of the pipe for stdin.
func (s *stdio) setStdin(file *os.File) error {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("copy %s: %w", file.Name(), err)
	}
	s.dropStdin()
	_ = s.child[0].Close()
	s.child[0] = os.NewFile(uintptr(fd), file.Name())
	return nil
}

// setTerminal gives a process its pty; slave is open thrice for the child.
func (s *stdio) setTerminal(master, slave *os.File) {
	s.terminal = master
	s.child[0] = slave
	s.ends[guestproto.Stdin] = master
	s.ends[guestproto.Stdout] = master
}

// childFds are the descriptors that become the process's 0, 1 and 2.
func (s *stdio) childFds() [3]uintptr {
	if s.terminal != nil {
		return [3]uintptr{s.child[0].Fd(), s.child[0].Fd(), s.child[0].Fd()}
	}
	return [3]uintptr{s.child[0].Fd(), s.child[1].Fd(), s.child[2].Fd()}
}

// complain writes a last word to the process's stderr.
func (s *stdio) complain(text string) {
	out := s.child[2]
	if s.terminal != nil {
		out = s.child[0]
	}
	if out != nil {
		_, _ = fmt.Fprintln(out, text) // nobody to tell
	}
}

// releaseChild closes guestinit's copies of the process's descriptors.
func (s *stdio) releaseChild() {
	for i, f := range s.child {
		if f != nil {
			_ = f.Close()
			s.child[i] = nil
		}
	}
}

// close ends what has not been attached. It is for processes that never came
// to be or that have been forgotten.
func (s *stdio) close() {
	s.releaseChild()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.ends {
		_ = f.Close()
		delete(s.ends, name)
	}
}

// attach replies on stream and turns it into the standard stream called name.
func (s *stdio) attach(name guestproto.Stream, stream *yamux.Stream) error {
	s.mu.Lock()
	file := s.ends[name]
	delete(s.ends, name)
	output := file != nil && name != guestproto.Stdin
	if output {
		s.attached++
		s.relays.Add(1)
	}
	s.mu.Unlock()
	if file == nil {
		return guestproto.Errorf(guestproto.CodeBadRequest, "the process has no %q, or it has been asked for already", name)
	}
	if err := reply(stream, nil, nil); err != nil {
		debugf("attach %s: %v", name, err)
	}
	if output {
		go func() {
			defer s.relays.Done()
			s.relayOutput(stream, file)
		}()
		return nil
	}
	go s.relayInput(file, stream)
	return nil
}

// relayInput copies from the monitor to the process until either ends.
func (s *stdio) relayInput(file *os.File, stream *yamux.Stream) {
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-s.ended:
			_ = stream.SetReadDeadline(time.Now())
			if s.terminal != nil {
				_ = file.SetWriteDeadline(time.Now())
			}
		case <-finished:
		}
	}()
	buf := make([]byte, relayBuffer)
	_, err := io.CopyBuffer(writerOnly{file}, readerOnly{stream}, buf)
	if s.terminal == nil {
		_ = file.Close() // the process's end of file
	}
	_ = stream.Close() // tells the monitor that nobody reads any more
	if err != nil {
		// The process has closed its stdin but the monitor may still write:
		// without a reader it would block for as long as the process lives.
		_, _ = io.CopyBuffer(io.Discard, readerOnly{stream}, buf)
	}
}

// readerOnly and writerOnly hide the methods that would make io.CopyBuffer
// go without the buffer.
type (
	readerOnly struct{ io.Reader }
	writerOnly struct{ io.Writer }
)

// terminalGrace is how long the output of a terminal may take from the slave to
// the master, through the kernel's work queue, after its process has ended.
// Only a terminal that another process still holds ever waits for it.
const terminalGrace = 200 * time.Millisecond

// relayOutput copies from the process to the monitor until the end of file,
// which is when the last process has closed it. Once the process itself has
// ended it only takes what is there: children it has left behind do not count.
// Where nobody reads on the host any more, the monitor closes the stream, and the
// process gets EPIPE, or with a terminal is hung up.
func (s *stdio) relayOutput(stream *yamux.Stream, file *os.File) {
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-s.ended:
			grace := time.Duration(0)
			if s.terminal != nil {
				grace = terminalGrace
			}
			_ = file.SetReadDeadline(time.Now().Add(grace))
		case <-finished:
		}
	}()
	go func() {
		_, _ = io.Copy(io.Discard, stream) // nothing comes; it ends with the stream
		_ = file.Close()
		_ = stream.Close() // ends a write that waits for the monitor to read
	}()
	buf := make([]byte, relayBuffer)
	_, err := io.CopyBuffer(writerOnly{stream}, readerOnly{file}, buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = relayRest(stream, file, buf)
	}
	if err != nil && !errors.Is(err, unix.EIO) { // EIO is a terminal's end of file
		debugf("relay %s: %v", file.Name(), err)
	}
	_ = file.Close()
	_ = stream.Close()
}

// relayRest copies what can be read from file now and no more.
func relayRest(w io.Writer, file *os.File, buf []byte) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	_ = file.SetReadDeadline(time.Time{})
	left := 0
	if err := conn.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
		return err
	}
	for left > 0 {
		n := 0
		var readErr error
		err := conn.Read(func(fd uintptr) bool {
			n, readErr = unix.Read(int(fd), buf[:min(left, len(buf))])
			return true
		})
		if err := errors.Join(err, readErr); err != nil || n <= 0 {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// end says that the process has ended.
func (s *stdio) end() { close(s.ended) }

// drain waits until the outputs that have been asked for are in their streams.
func (s *stdio) drain() { s.relays.Wait() }

// spent says that every output has been asked for and relayed, once drain has
// returned: the process can be forgotten.
func (s *stdio) spent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	outputs := 2
	if s.terminal != nil {
		outputs = 1
	}
	return s.attached == outputs
}
