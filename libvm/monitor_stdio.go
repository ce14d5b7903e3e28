package libvm

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
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
}

// startRelay opens process's streams in the guest, all at once, and begins to copy.
func startRelay(g *guest, process string, stdio Stdio) (*relay, error) {
	r := &relay{outputs: make(chan struct{}, 2)}
	files := map[guestproto.Stream]*os.File{
		guestproto.Stdin: stdio.Stdin, guestproto.Stdout: stdio.Stdout, guestproto.Stderr: stdio.Stderr,
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
			case err != nil:
			case name == guestproto.Stdin:
				_, _ = io.CopyBuffer(onlyWriter{stream}, onlyReader{file}, make([]byte, copyBytes)) // either end may go at any time
				_ = stream.Close()                                                                  // this is the process's EOF
			default:
				r.copyOut(file, stream)
			}
		}()
	}
	var err error
	for range pending {
		err = errors.Join(err, <-opened)
	}
	return r, err
}

const copyBytes = 128 << 10

// onlyReader and onlyWriter hide ReadFrom and WriteTo, which would choose a
// buffer of their own.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

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
