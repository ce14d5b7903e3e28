package libvm

import (
	"cmp"
	"errors"
	"io"
	"math"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// Stdio are a process's standard streams on the host. With a terminal Stderr is
// nil; otherwise Stdin is nil where it would be /dev/null. The relay owns them: it
// closes each at its end.
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
	stdout, stderr output
	// changed has a message when an output has got on or has ended. One goroutine
	// at a time may wait for it.
	changed chan struct{}

	stdin     *yamux.Stream // nil if there is none
	inputOver *os.File      // closing it ends the reading of stdin; nil if there is none
}

// An output is stdout or stderr.
type output struct {
	stream  *yamux.Stream // nil if there is none
	written atomic.Int64  // bytes handed to the host so far
	ended   atomic.Bool
}

// startRelay opens process's streams in the guest, all at once, and begins to copy.
func startRelay(g *guest, process string, stdio Stdio) (*relay, error) {
	r := &relay{changed: make(chan struct{}, 1)}
	type opened struct {
		name   guestproto.Stream
		stream *yamux.Stream
		err    error
	}
	files := map[guestproto.Stream]*os.File{
		guestproto.Stdin: stdio.Stdin, guestproto.Stdout: stdio.Stdout, guestproto.Stderr: stdio.Stderr,
	}
	var over *os.File
	if stdio.Stdin != nil {
		var err error
		if over, r.inputOver, err = os.Pipe(); err != nil {
			return nil, fault.Wrap("make a pipe", err)
		}
	}
	streams := make(chan opened)
	pending := 0
	for name, file := range files {
		if file == nil {
			continue
		}
		pending++
		go func() {
			stream, err := g.open(guestproto.OpStdio, guestproto.StdioRequest{Process: process, Stream: name}, nil, promptly)
			streams <- opened{name, stream, err}
		}()
	}
	got := map[guestproto.Stream]*yamux.Stream{}
	var err error
	for range pending {
		o := <-streams
		err = cmp.Or(err, o.err) // the others fail for the same reason
		if o.err == nil {
			got[o.name] = o.stream
		}
	}
	if err != nil {
		for _, stream := range got {
			_ = stream.Close() // nothing has come of it
		}
		if over != nil {
			fdpass.CloseAll([]*os.File{over, r.inputOver})
		}
		return nil, err
	}
	r.stdin, r.stdout.stream, r.stderr.stream = got[guestproto.Stdin], got[guestproto.Stdout], got[guestproto.Stderr]
	if r.stdin != nil {
		go copyIn(r.stdin, stdio.Stdin, over)
	}
	if r.stdout.stream != nil {
		go r.copyOut(&r.stdout, stdio.Stdout)
	}
	if r.stderr.stream != nil {
		go r.copyOut(&r.stderr, stdio.Stderr)
	}
	return r, nil
}

// copyIn gives the guest what comes from file until either ends, or over does, and
// closes both files. What comes later is for whoever reads file then: it reads nothing
// ahead, and does not wait in a read.
func copyIn(stream *yamux.Stream, file, over *os.File) {
	buf := make([]byte, copyBytes)
	for {
		n, err := readUnless(over, file, buf)
		if n <= 0 || err != nil {
			break
		}
		if _, err := stream.Write(buf[:n]); err != nil {
			break
		}
	}
	_ = errors.Join(stream.Close(), file.Close(), over.Close()) // the first is the process's EOF, and either end may go at any time
}

// readUnless is a read of file that the end of over ends. file may not be one that
// Go's poller knows: it is the caller's, and so are its flags.
func readUnless(over, file *os.File, buf []byte) (n int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	readErr := raw.Read(func(fd uintptr) bool {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(over.Fd())}}
			_, err = unix.Poll(fds, -1)
			if err == nil && fds[1].Revents != 0 {
				n, err = 0, io.EOF
				return true
			}
			if err == nil {
				n, err = unix.Read(int(fd), buf)
			}
			if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
				return true
			}
		}
	})
	return n, errors.Join(readErr, err)
}

// endInput ends the reading of stdin.
func (r *relay) endInput() {
	if r.stdin == nil {
		return
	}
	_ = r.inputOver.Close() // it is but a sign
	_ = r.stdin.SetWriteDeadline(time.Now())
}

const copyBytes = 128 << 10

// copyOut writes one output of the guest to file until the guest closes it. If
// the host's reader goes away, closing the stream tells the guest, where whoever
// writes then gets EPIPE as on the host.
func (r *relay) copyOut(o *output, file *os.File) {
	buf := make([]byte, copyBytes)
	for {
		n, err := o.stream.Read(buf)
		if n > 0 {
			if _, werr := file.Write(buf[:n]); werr != nil {
				break
			}
			o.written.Add(int64(n))
			r.note()
		}
		if err != nil {
			break
		}
	}
	_ = errors.Join(file.Close(), o.stream.Close()) // both ends are done with; nothing depends on how they took it
	o.ended.Store(true)
	r.note()
}

func (r *relay) note() {
	select {
	case r.changed <- struct{}{}:
	default: // who waits for it has not looked at the last one yet
	}
}

// has says that an output has come to its end, or to that many bytes.
func (o *output) has(bytes int64) bool {
	return o.stream == nil || o.ended.Load() || o.written.Load() >= bytes
}

// atEnd says that every output has ended.
func (r *relay) atEnd() bool { return r.stdout.has(math.MaxInt64) && r.stderr.has(math.MaxInt64) }

// drain waits until all output has been written, or until nobody has taken any
// for drainPatience, or killedPatience once the container was killed.
func (r *relay) drain(killed <-chan struct{}) { r.await(r.atEnd, killed) }

// catchUp is drain for what a process itself has written, which its children may go
// on from.
func (r *relay) catchUp(end guestproto.WaitReply, killed <-chan struct{}) {
	r.await(func() bool { return r.stdout.has(end.Stdout) && r.stderr.has(end.Stderr) }, killed)
}

func (r *relay) await(done func() bool, killed <-chan struct{}) {
	tick := time.NewTicker(drainPatience)
	defer tick.Stop()
	last := int64(-1)
	for !done() {
		select {
		case <-r.changed:
		case <-killed:
			killed = nil
			tick.Reset(killedPatience)
		case <-tick.C:
			now := r.stdout.written.Load() + r.stderr.written.Load()
			if now == last {
				return
			}
			last = now
		}
	}
}

// linger waits until every output has ended, which is when the process's children
// have closed it or the host's reader has gone. Being told to stop ends them, and
// the container's end has them drained.
func (r *relay) linger(stop, ended, killed <-chan struct{}) {
	for !r.atEnd() {
		select {
		case <-r.changed:
		case <-stop:
			r.cut()
			return
		case <-ended:
			r.drain(killed)
			return
		}
	}
}

// cut ends the outputs: whoever writes into them gets EPIPE, or with a terminal is
// hung up.
func (r *relay) cut() {
	for _, o := range []*output{&r.stdout, &r.stderr} {
		if o.stream != nil {
			_ = o.stream.SetReadDeadline(time.Now()) // which ends copyOut
		}
	}
}
