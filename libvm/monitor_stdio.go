package libvm

import (
	"cmp"
	"encoding/binary"
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
	stdout, stderr output
	// changed has a message when an output has got on or has ended. One goroutine
	// at a time may wait for it.
	changed chan struct{}
	input   *input // nil without stdin
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
	if stdio.Stdin != nil {
		var err error
		if r.input, err = newInput(stdio.Stdin); err != nil {
			return nil, err
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
	var err error
	for range pending {
		o := <-streams
		switch {
		case o.err != nil && o.name == guestproto.Stdin:
			r.input.release()
			fallthrough
		case o.err != nil:
			err = cmp.Or(err, o.err) // the others fail for the same reason
			continue
		}
		switch o.name {
		case guestproto.Stdin:
			go copyIn(o.stream, r.input)
		case guestproto.Stdout:
			r.stdout.stream = o.stream
			go r.copyOut(&r.stdout, stdio.Stdout)
		case guestproto.Stderr:
			r.stderr.stream = o.stream
			go r.copyOut(&r.stderr, stdio.Stderr)
		}
	}
	if err != nil {
		r.stopInput()
	}
	return r, err
}

// copyIn gives the guest what comes from in, until either ends or in is stopped.
func copyIn(stream *yamux.Stream, in *input) {
	_, _ = io.CopyBuffer(onlyWriter{stream}, in, make([]byte, copyBytes)) // either end may go at any time
	_ = stream.Close()                                                    // this is the process's EOF
	in.release()
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

// endInput is stopInput with the file that stdin is closed: nothing is lost, it is only
// read.
func (r *relay) endInput(stdin *os.File) {
	r.stopInput()
	_ = stdin.Close()
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
