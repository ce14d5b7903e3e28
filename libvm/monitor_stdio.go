package libvm

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
)

// Stdio are a process's standard streams on the host. With a terminal Stdin and
// Stdout are the same tty and Stderr is nil; otherwise Stdin is nil where it would
// be /dev/null. The relay owns them: it closes Stdout and Stderr when the guest
// has closed its own.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// pipes is the stdio of a process without a terminal.
func pipes(stdin, stdout, stderr *os.File) Stdio {
	if isNull(stdin) {
		stdin = nil
	}
	return Stdio{Stdin: stdin, Stdout: stdout, Stderr: stderr}
}

// isNull says that a file is /dev/null, under whatever name. The guest has one
// of its own, and a program may look what its stdin is.
func isNull(f *os.File) bool {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

// How long a process that has ended waits for a reader of its output that takes
// nothing at all: as a rule, and once its container was killed.
const (
	drainPatience  = 10 * time.Second
	killedPatience = 2 * time.Second
)

// relay carries the streams of one process.
type relay struct {
	written atomic.Int64  // bytes of output handed to the host so far
	outputs chan struct{} // one message for each output that has ended
	pending int
	input   *input // nil without stdin
}

// startRelay opens process's streams in the guest, all at once, and begins to copy.
func startRelay(g *guest, process string, stdio Stdio) (*relay, error) {
	r := &relay{outputs: make(chan struct{}, 2)}
	files := map[guestproto.Stream]*os.File{
		guestproto.Stdin: stdio.Stdin, guestproto.Stdout: stdio.Stdout, guestproto.Stderr: stdio.Stderr,
	}
	if stdio.Stdin != nil {
		var err error
		if r.input, err = newInput(stdio.Stdin); err != nil {
			return nil, err
		}
	}
	opened := make(chan error)
	pending := 0
	for name, file := range files {
		if file == nil {
			continue
		}
		pending++
		if name != guestproto.Stdin {
			r.pending++
		}
		go func() {
			stream, err := g.open(guestproto.OpStdio, guestproto.StdioRequest{Process: process, Stream: name}, nil, promptly)
			opened <- err
			switch {
			case err != nil && name == guestproto.Stdin:
				r.input.release()
			case err != nil:
			case name == guestproto.Stdin:
				_, _ = io.CopyBuffer(onlyWriter{stream}, r.input, make([]byte, copyBytes)) // either end may go at any time
				_ = stream.Close()                                                         // this is the process's EOF
				r.input.release()
			default:
				r.copyOut(file, stream)
			}
		}()
	}
	var err error
	for range pending {
		if e := <-opened; err == nil { // the others fail for the same reason
			err = e
		}
	}
	if err != nil {
		r.stopInput()
	}
	return r, err
}

const copyBytes = 128 << 10

// onlyWriter hides ReadFrom, which would choose a buffer of its own.
type onlyWriter struct{ io.Writer }

// stopInput has the relay take nothing of stdin any more.
func (r *relay) stopInput() {
	if r.input != nil {
		r.input.stop()
	}
}

// input reads a process's stdin until it is stopped. A blocking read outlasts a close of
// its file: it would take what is typed next, which is for another.
type input struct {
	file *os.File
	over *os.File // an eventfd, readable once the input is stopped; release closes it
}

func newInput(file *os.File) (*input, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fault.Wrap("eventfd", err)
	}
	return &input{file: file, over: os.NewFile(uintptr(fd), "end of the input")}, nil
}

// stop ends Read, now and in future.
func (in *input) stop() {
	_, _ = in.over.Write(binary.NativeEndian.AppendUint64(nil, 1)) // released: nobody reads any more
}

// release is for the one who reads, and reads no more.
func (in *input) release() { _ = in.over.Close() }

func (in *input) Read(b []byte) (int, error) {
	conn, err := in.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	over := false
	if cerr := conn.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(in.over.Fd()), Events: unix.POLLIN}}
		for {
			if _, err = unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		over = fds[1].Revents != 0
	}); cerr != nil || err != nil {
		return 0, errors.Join(cerr, err)
	}
	if over {
		return 0, io.EOF
	}
	return in.file.Read(b)
}

// copyOut writes one output of the guest to file until the guest closes it. If
// the host's reader goes away, closing the stream tells the guest, whose process
// then gets EPIPE as it would on the host.
func (r *relay) copyOut(file *os.File, stream io.ReadWriteCloser) {
	defer func() { r.outputs <- struct{}{} }()
	buf := make([]byte, copyBytes)
	for {
		n, err := stream.Read(buf)
		if n > 0 {
			if _, werr := file.Write(buf[:n]); werr != nil {
				break
			}
			r.written.Add(int64(n))
		}
		if err != nil {
			break
		}
	}
	_ = errors.Join(file.Close(), stream.Close()) // both ends are done with; nothing depends on how they took it
}

// drain waits until all output has been written, or until nobody has taken any
// for drainPatience, or killedPatience once the container was killed. It is called once, when the process has ended.
func (r *relay) drain(killed <-chan struct{}) {
	tick := time.NewTicker(drainPatience)
	defer tick.Stop()
	last := int64(-1)
	for r.pending > 0 {
		select {
		case <-r.outputs:
			r.pending--
		case <-killed:
			killed = nil
			tick.Reset(killedPatience)
		case <-tick.C:
			now := r.written.Load()
			if now == last {
				return
			}
			last = now
		}
	}
}
