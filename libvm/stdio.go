package libvm

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"boxlite/internal/guestproto"
)

// Stdio are a process's standard streams on the host. With a terminal Stdin and
// Stdout are the same tty and Stderr is nil. The relay owns them: it closes
// Stdout and Stderr when the guest has closed its own.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// drainPatience is how long a process that has ended waits for a reader of its
// output that takes nothing at all.
const drainPatience = 10 * time.Second

// relay carries the streams of one process.
type relay struct {
	written atomic.Int64  // bytes of output handed to the host so far
	outputs chan struct{} // one message for each output that has ended
	pending int
}

// startRelay opens process's streams in the guest and begins to copy.
func startRelay(g *guest, process string, stdio Stdio) (*relay, error) {
	r := &relay{outputs: make(chan struct{}, 2)}
	outputs := []struct {
		stream guestproto.Stream
		file   *os.File
	}{{guestproto.Stdout, stdio.Stdout}, {guestproto.Stderr, stdio.Stderr}}
	for _, o := range outputs {
		if o.file == nil {
			continue
		}
		s, err := g.open(guestproto.OpStdio, guestproto.StdioRequest{Process: process, Stream: o.stream}, nil, requestTimeout)
		if err != nil {
			return nil, err
		}
		r.pending++
		go r.copyOut(o.file, s)
	}
	if stdio.Stdin != nil {
		s, err := g.open(guestproto.OpStdio, guestproto.StdioRequest{Process: process, Stream: guestproto.Stdin}, nil, requestTimeout)
		if err != nil {
			return nil, err
		}
		go func() {
			_, _ = io.CopyBuffer(onlyWriter{s}, onlyReader{stdio.Stdin}, make([]byte, copyBytes)) // either end may go at any time
			_ = s.Close()                                                                         // this is the process's EOF
		}()
	}
	return r, nil
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
// for drainPatience. It is called once, when the process has ended.
func (r *relay) drain() {
	tick := time.NewTicker(drainPatience)
	defer tick.Stop()
	last := int64(-1)
	for r.pending > 0 {
		select {
		case <-r.outputs:
			r.pending--
		case <-tick.C:
			now := r.written.Load()
			if now == last {
				return
			}
			last = now
		}
	}
}
