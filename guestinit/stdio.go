package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
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

// outputBuffers are those of the outputs that have something to say: children of
// an exec process may hold its outputs for long.
var outputBuffers = sync.Pool{New: func() any { return new([relayBuffer]byte) }}

// stdio is guestinit's side of a process's standard streams.
type stdio struct {
	// child are the process's own descriptors. guestinit keeps them until the
	// exec, so that a failed exec can be reported on them.
	child [3]*os.File
	// terminal is the master of the process's pty, or nil.
	terminal *os.File

	mu      sync.Mutex
	ends    map[guestproto.Stream]*os.File // guestinit's ends; gone once attached
	outputs map[guestproto.Stream]*output  // those that have been asked for
	ended   chan struct{}                  // closed when the process has ended
	// over is closed when the process has ended and every output has reached its end:
	// nobody is left who would read stdin.
	over chan struct{}
}

func newStdio() *stdio {
	return &stdio{ends: map[guestproto.Stream]*os.File{}, outputs: map[guestproto.Stream]*output{}, ended: make(chan struct{}), over: make(chan struct{})}
}

// An output is stdout or stderr on its way to the monitor.
type output struct {
	file *os.File

	mu      sync.Mutex
	read    int64 // bytes taken from file
	relayed int64 // of these, bytes that are in the stream
	mark    int64 // what has been written into file when the process ended; -1 before
	closed  bool
	// caughtUp is closed when what the process wrote is in the stream.
	caughtUp chan struct{}
	// done is closed at the output's end.
	done chan struct{}
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
	var out *output
	ended := isClosed(s.ended)
	if file != nil && name != guestproto.Stdin {
		out = &output{file: file, mark: -1, caughtUp: make(chan struct{}), done: make(chan struct{})}
		s.outputs[name] = out
	}
	s.mu.Unlock()
	if file == nil {
		return guestproto.Errorf(guestproto.CodeBadRequest, "the process has no %q, or it has been asked for already", name)
	}
	if err := reply(stream, nil, nil); err != nil {
		debugf("attach %s: %v", name, err)
	}
	if out == nil {
		go s.relayInput(file, stream)
		return nil
	}
	go func() {
		out.relay(stream)
		s.checkOver()
	}()
	if ended {
		s.markOutput(out)
	}
	return nil
}

// relayInput copies from the monitor to the process until either ends. What the
// process leaves behind may go on to read, for as long as it holds an output.
func (s *stdio) relayInput(file *os.File, stream *yamux.Stream) {
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-s.over:
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
// Only a terminal that another process has opened anew ever waits for it.
const terminalGrace = 200 * time.Millisecond

// relay copies from the process to the monitor until the end of file, which is
// when the last process has closed it. Where nobody reads on the host any more, the
// monitor closes the stream, and who writes gets EPIPE, or with a terminal is hung up.
func (o *output) relay(stream *yamux.Stream) {
	go func() {
		_, _ = io.Copy(io.Discard, stream) // nothing comes; it ends with the stream
		_ = o.file.Close()
		_ = stream.Close() // ends a write that waits for the monitor to read
	}()
	if err := o.copyTo(stream); err != nil && !errors.Is(err, unix.EIO) { // EIO is a terminal's end of file
		debugf("relay %s: %v", o.file.Name(), err)
	}
	_ = o.file.Close()
	_ = stream.Close()
	o.mu.Lock()
	o.closed = true
	o.check()
	o.mu.Unlock()
	close(o.done)
}

func (o *output) copyTo(w io.Writer) error {
	conn, err := o.file.SyscallConn()
	if err != nil {
		return err
	}
	for {
		buf, n, err := o.readSome(conn)
		if n > 0 {
			_, err = w.Write(buf[:n])
		}
		if buf != nil {
			outputBuffers.Put(buf)
		}
		if err != nil || n <= 0 {
			return err
		}
		o.mu.Lock()
		o.relayed += int64(n)
		o.check()
		o.mu.Unlock()
	}
}

// readSome waits until there is something to read, and only then takes a buffer.
// Read and counted are one, so that setMark misses nothing and counts nothing twice.
func (o *output) readSome(conn syscall.RawConn) (buf *[relayBuffer]byte, n int, err error) {
	waitErr := conn.Read(func(fd uintptr) bool {
		buf = outputBuffers.Get().(*[relayBuffer]byte)
		o.mu.Lock()
		for n, err = unix.Read(int(fd), buf[:]); errors.Is(err, unix.EINTR); {
			n, err = unix.Read(int(fd), buf[:])
		}
		o.read += int64(max(n, 0))
		o.mu.Unlock()
		if errors.Is(err, unix.EAGAIN) {
			outputBuffers.Put(buf)
			return false
		}
		return true
	})
	if waitErr != nil {
		return nil, 0, waitErr
	}
	return buf, n, err
}

// setMark notes what there is to be relayed of the process, which has ended.
func (o *output) setMark() {
	o.mu.Lock()
	defer o.mu.Unlock()
	left := 0
	conn, err := o.file.SyscallConn()
	if err == nil {
		// A file that is closed has nothing left, and its relay ends.
		_ = conn.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	o.mark = o.read + int64(left)
	o.check()
}

// check closes caughtUp when it is time. The caller holds the lock.
func (o *output) check() {
	if !isClosed(o.caughtUp) && (o.closed || o.mark >= 0 && o.relayed >= o.mark) {
		close(o.caughtUp)
	}
}

// end says that the process has ended.
func (s *stdio) end() {
	s.mu.Lock()
	close(s.ended)
	outputs := slices.Collect(maps.Values(s.outputs))
	s.mu.Unlock()
	for _, o := range outputs {
		s.markOutput(o)
	}
	s.checkOver()
}

func (s *stdio) markOutput(o *output) {
	if s.terminal != nil {
		time.AfterFunc(terminalGrace, o.setMark)
		return
	}
	o.setMark()
}

// checkOver closes over when it is time.
func (s *stdio) checkOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if isClosed(s.over) || !isClosed(s.ended) || !s.spent() {
		return
	}
	for _, o := range s.outputs {
		if !isClosed(o.done) {
			return
		}
	}
	close(s.over)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// drain waits until all that the process wrote into the outputs that have been asked
// for is in their streams, and says how much that is. The process has ended.
func (s *stdio) drain() (stdout, stderr int64) {
	s.mu.Lock()
	outputs := maps.Clone(s.outputs)
	s.mu.Unlock()
	for name, o := range outputs {
		<-o.caughtUp
		o.mu.Lock()
		relayed := o.relayed
		o.mu.Unlock()
		if name == guestproto.Stdout {
			stdout = relayed
		} else {
			stderr = relayed
		}
	}
	return stdout, stderr
}

// cut ends the outputs, of which drain has taken what counts.
func (s *stdio) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.outputs {
		_ = o.file.Close()
	}
}

// allAsked says that every output has been asked for.
func (s *stdio) allAsked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spent()
}

// spent is allAsked for who holds the lock.
func (s *stdio) spent() bool {
	outputs := 2
	if s.terminal != nil {
		outputs = 1
	}
	return len(s.outputs) == outputs
}
