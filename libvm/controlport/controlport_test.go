package controlport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"
)

// bytesOf is a frame with a body of that many zeros.
func bytesOf(f frame, body int) []byte {
	b := []byte{f.version, f.kind}
	b = binary.BigEndian.AppendUint16(b, f.flags)
	b = binary.BigEndian.AppendUint32(b, f.stream)
	b = binary.BigEndian.AppendUint32(b, f.length)
	return append(b, make([]byte, body)...)
}

// open tells the port of a stream that the host opens.
func (p *Port) open(id uint32) { _ = p.note(frame{kind: kindWindowUpdate, flags: flagSYN, stream: id}) }

func TestCheck(t *testing.T) {
	data := func(id, n uint32) []byte {
		return bytesOf(frame{kind: kindData, stream: id, length: n}, int(n))
	}
	fin := bytesOf(frame{kind: kindWindowUpdate, flags: flagFIN, stream: 1}, 0)
	for _, c := range []struct {
		name string
		sent [][]byte
		want string // in the violation; empty for none
	}{
		{"what was allowed", [][]byte{data(1, 60), data(1, 40)}, ""},
		{"window updates", [][]byte{bytesOf(frame{kind: kindWindowUpdate, flags: flagACK, stream: 1, length: 1 << 20}, 0)}, ""},
		{"the end, and window updates behind it", [][]byte{data(1, 100), fin, bytesOf(frame{kind: kindWindowUpdate, stream: 1, length: 9}, 0)}, ""},
		{"a byte too many", [][]byte{data(1, 100), data(1, 1)}, "1 bytes on stream 1, at most 0"},
		{"a huge frame", [][]byte{bytesOf(frame{kind: kindData, stream: 1, length: 0xffffffff}, 0)}, "4294967295 bytes on stream 1"},
		{"data behind the end", [][]byte{fin, data(1, 1)}, "behind its end"},
		{"two ends", [][]byte{fin, fin}, "closed twice"},
		{"a ping", [][]byte{bytesOf(frame{kind: kindPing, flags: flagSYN}, 0)}, "a ping"},
		{"an answer to no ping", [][]byte{bytesOf(frame{kind: kindPing, flags: flagACK}, 0)}, "a ping"},
		{"a go-away", [][]byte{bytesOf(frame{kind: kindGoAway}, 0)}, "a go-away"},
		{"a stream of its own", [][]byte{bytesOf(frame{kind: kindWindowUpdate, flags: flagSYN, stream: 2}, 0)}, "opened a stream"},
		{"the host's stream again", [][]byte{bytesOf(frame{kind: kindData, flags: flagSYN, stream: 1}, 0)}, "opened a stream"},
		{"a stream that nobody opened", [][]byte{data(5, 1)}, "nobody opened"},
		{"an even stream", [][]byte{data(2, 1)}, "nobody opened"},
		{"another version", [][]byte{bytesOf(frame{version: 1, stream: 1}, 0)}, "version 1"},
		{"another type", [][]byte{bytesOf(frame{kind: 9, stream: 1}, 0)}, "type 9"},
		{"another flag", [][]byte{bytesOf(frame{flags: 1 << 7, stream: 1}, 0)}, "flags 0x80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, piece := range []int{1, 7, 1 << 20} { // however the bytes come
				p := New(nil, Options{})
				p.open(1)
				p.open(3)
				p.Allow(1, 100)
				var err error
				for sent := bytes.Join(c.sent, nil); len(sent) > 0 && err == nil; {
					n := min(piece, len(sent))
					err = p.reading.scan(sent[:n], p.check)
					sent = sent[n:]
				}
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("in pieces of %d: %v, want %q", piece, err, c.want)
				}
			}
		})
	}
}

// An early or extra byte of a reply is found, whenever it comes.
func TestFinish(t *testing.T) {
	host, guest := net.Pipe()
	defer guest.Close()
	p := New(host, Options{})
	p.open(1)
	p.open(3)
	for id, want := range map[uint32]bool{1: false, 3: true} {
		p.Allow(id, 100)
		if err := p.reading.scan(bytesOf(frame{stream: id, length: 50}, 50), p.check); err != nil {
			t.Fatal(err)
		}
		read := int64(50)
		if want {
			read = 49
		}
		if err := p.Finish(id, read); errors.Is(err, ErrViolation) != want {
			t.Errorf("Finish(%d, %d) = %v, want a violation: %v", id, read, err, want)
		}
	}
	if err := p.reading.scan(bytesOf(frame{stream: 1, length: 1}, 1), p.check); err == nil {
		t.Error("a byte behind the end of the reply passes")
	}
}

// A reply that comes when the host has given up waiting is no violation. More than a reply is, and so are too many of them.
func TestAbandon(t *testing.T) {
	host, guest := net.Pipe()
	defer guest.Close()
	p := New(host, Options{})
	for id := uint32(1); id < 20*maxAbandoned; id += 2 { // one after the other, any number
		p.open(id)
		p.Allow(id, Unlimited)
		if err := p.Abandon(id, 100); err != nil {
			t.Fatal(err)
		}
		if err := p.reading.scan(bytesOf(frame{stream: id, length: 100}, 100), p.check); err != nil {
			t.Fatalf("a late reply: %v", err)
		}
		if err := p.check(frame{kind: kindWindowUpdate, flags: flagFIN, stream: id}); err != nil {
			t.Fatal(err)
		}
	}
	p.open(20001)
	p.Allow(20001, 50)
	if err := p.Abandon(20001, 100); err != nil {
		t.Fatal(err)
	}
	if err := p.reading.scan(bytesOf(frame{stream: 20001, length: 51}, 51), p.check); err == nil {
		t.Error("more than the reply may have passes when it is late")
	}

	p = New(host, Options{})
	var err error
	count := 0
	for id := uint32(1); err == nil && count < 10*maxAbandoned; id += 2 {
		p.open(id)
		err = p.Abandon(id, 100)
		count++
	}
	if !errors.Is(err, ErrViolation) || count != maxAbandoned+1 {
		t.Errorf("after %d replies that are owed: %v, want a violation", count, err)
	}
}

// A guest that never closes its streams does not keep the host's memory.
func TestStreamsLeftOpen(t *testing.T) {
	host, guest := net.Pipe()
	defer guest.Close()
	p := New(host, Options{})
	var err error
	count := 0
	for id := uint32(1); err == nil && count < 10*maxUnclosed; id += 2 {
		p.open(id)
		err = p.Finish(id, 0)
		count++
	}
	if !errors.Is(err, ErrViolation) || count > maxUnclosed+1 {
		t.Errorf("after %d streams: %v, want a violation", count, err)
	}
	// One that does may have any number, one after the other.
	p = New(host, Options{})
	for id := uint32(1); id < 8*maxUnclosed; id += 2 {
		p.open(id)
		_ = p.note(frame{kind: kindWindowUpdate, flags: flagFIN, stream: id})
		if err := p.Finish(id, 0); err != nil {
			t.Fatalf("stream %d: %v", id, err)
		}
		if err := p.check(frame{kind: kindWindowUpdate, flags: flagFIN, stream: id}); err != nil {
			t.Fatalf("stream %d: %v", id, err)
		}
	}
	if len(p.streams) != 0 {
		t.Errorf("%d streams are remembered", len(p.streams))
	}
}

// pair is a port over a socket like QEMU's, and its far end.
func pair(t *testing.T, opts Options) (*Port, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	return New(conns[0], opts), conns[1]
}

// Two honest ends of yamux notice nothing of the port.
func TestHonestSession(t *testing.T) {
	violated := func(err error) { t.Errorf("violation: %v", err) }
	port, far := pair(t, Options{Violated: violated})
	config := yamux.DefaultConfig()
	config.EnableKeepAlive, config.LogOutput = false, io.Discard
	client, err := yamux.Client(port, config)
	if err != nil {
		t.Fatal(err)
	}
	server, err := yamux.Server(far, config)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			stream, err := server.AcceptStream()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(stream, stream)
				_ = stream.Close()
			}()
		}
	}()
	for range 50 {
		stream, err := client.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		port.Allow(stream.StreamID(), Unlimited)
		sent := make([]byte, rand.IntN(1<<20))
		go func() {
			_, _ = stream.Write(sent)
			_ = stream.Close()
		}()
		got, err := io.ReadAll(stream)
		if err != nil || len(got) != len(sent) {
			t.Fatalf("%d bytes came back as %d, %v", len(sent), len(got), err)
		}
		if err := port.Finish(stream.StreamID(), int64(len(got))); err != nil {
			t.Fatal(err)
		}
	}
}

// A guest that takes nothing is found; one that stands still is waited for.
func TestWriteToAFullPort(t *testing.T) {
	var stopped atomic.Bool
	stopped.Store(true)
	port, _ := pair(t, Options{Stopped: stopped.Load})
	ended := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := port.Write(make([]byte, 32<<20))
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("Write to a VM that stands still = %v", err)
	case <-time.After(3 * sendStep):
	}
	stopped.Store(false)
	err := <-ended
	took := time.Since(began)
	if !errors.Is(err, ErrViolation) || took < sendPatience || took > 2*sendPatience {
		t.Errorf("Write to a full port = %v after %s", err, took)
	}
	if !errors.Is(port.Err(), ErrViolation) {
		t.Errorf("Err = %v", port.Err())
	}
}

// Whatever passes is a frame that the host may be sent, and the session's own reader
// finds the same frames in it.
func FuzzRead(f *testing.F) {
	f.Add(bytesOf(frame{stream: 1, length: 5}, 5))
	f.Add(bytesOf(frame{kind: kindPing, flags: flagSYN}, 0))
	f.Add(bytesOf(frame{kind: kindWindowUpdate, flags: flagSYN, stream: 2}, 0))
	f.Add(append(bytesOf(frame{kind: kindWindowUpdate, flags: flagFIN, stream: 1}, 0), bytesOf(frame{stream: 1, length: 1}, 1)...))
	f.Fuzz(func(t *testing.T, wire []byte) {
		p := New(nil, Options{})
		p.open(1)
		p.open(3)
		p.Allow(1, 64)
		passed := 0
		for i := range wire {
			if p.reading.scan(wire[i:i+1], p.check) != nil {
				break
			}
			passed++
		}
		total := 0
		for b := wire[:passed]; len(b) >= headerBytes; {
			kind, flags, length := b[1], binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[8:])
			if kind > kindWindowUpdate || flags&flagSYN != 0 {
				t.Fatalf("a frame of type %d with flags %#x passes", kind, flags)
			}
			b = b[headerBytes:]
			if kind == kindData {
				total += int(length)
				b = b[min(int(length), len(b)):]
			}
		}
		if total > 64 {
			t.Fatalf("%d bytes pass, 64 were allowed", total)
		}
	})
}
