package sockrelay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair is the two ends of a connection.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(file)
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { _ = conn.Close() })
	}
	return ends[0], ends[1]
}

// halfCloser is one side's end of a stream as yamux has it: Close ends what this side writes.
type halfCloser struct {
	io.Reader
	io.WriteCloser
}

func (halfCloser) Shrink() {}

// streams are the two ends of one, which takes what nobody has read yet.
func streams(t *testing.T) (a, b halfCloser) {
	t.Helper()
	there, back := newQueue(), newQueue()
	return halfCloser{back, there}, halfCloser{there, back}
}

// queue is a pipe without a bound, so that only this package's bounds hold.
type queue struct {
	in      chan []byte
	out     chan []byte
	left    []byte
	closing chan struct{}
	once    sync.Once
}

func newQueue() *queue {
	q := &queue{in: make(chan []byte), out: make(chan []byte), closing: make(chan struct{})}
	go func() {
		defer close(q.out)
		var held [][]byte
		for closing := q.closing; ; {
			var out chan []byte
			var first []byte
			if len(held) > 0 {
				out, first = q.out, held[0]
			} else if closing == nil {
				return
			}
			select {
			case b := <-q.in:
				held = append(held, b)
			case out <- first:
				held = held[1:]
			case <-closing:
				closing = nil
			}
		}
	}()
	return q
}

func (q *queue) Write(b []byte) (int, error) {
	select {
	case <-q.closing:
		return 0, io.ErrClosedPipe
	case q.in <- bytes.Clone(b):
		return len(b), nil
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closing) })
	return nil
}

func (q *queue) Read(b []byte) (int, error) {
	if len(q.left) == 0 {
		next, ok := <-q.out
		if !ok {
			return 0, io.EOF
		}
		q.left = next
	}
	n := copy(b, q.left)
	q.left = q.left[n:]
	return n, nil
}

// joined is a client and a server with both sides of the boundary between them. The channel has the errors of both.
func joined(t *testing.T) (client, server *net.UnixConn, ended chan error) {
	t.Helper()
	c, s, ended := joinedBy(t, unixPair)
	return c.(*net.UnixConn), s.(*net.UnixConn), ended
}

// joinedBy is joined for connections of whatever kind.
func joinedBy(t *testing.T, pair func(*testing.T) (Conn, Conn)) (client, server Conn, ended chan error) {
	t.Helper()
	client, clientEnd := pair(t)
	server, serverEnd := pair(t)
	guest, host := streams(t)
	ended = make(chan error, 2)
	go func() { ended <- Join(clientEnd, guest) }()
	go func() { ended <- Join(serverEnd, host) }()
	return client, server, ended
}

func wantEnded(t *testing.T, ended chan error) {
	t.Helper()
	for range 2 {
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Join = %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Join has not ended")
		}
	}
}

func TestJoinHalfClose(t *testing.T) {
	client, server, ended := joined(t)
	sent := make([]byte, 1<<20)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	go func() {
		_, _ = io.Copy(server, server) // until the client writes no more
		_, _ = server.Write([]byte("the rest"))
		_ = server.Close()
	}()
	go func() {
		_, _ = client.Write(sent)
		_ = client.CloseWrite()
	}()
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, append(sent, "the rest"...)) {
		t.Errorf("read %d bytes, %v, want the %d sent and the rest", len(got), err, len(sent))
	}
	_ = client.Close()
	wantEnded(t, ended)
}

func TestJoinPeerGone(t *testing.T) {
	for name, prepare := range map[string]func(client, server *net.UnixConn) error{
		"idle":        func(_, _ *net.UnixConn) error { return nil },
		"half-closed": func(client, _ *net.UnixConn) error { return client.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			client, server, ended := joined(t)
			if err := prepare(client, server); err != nil {
				t.Fatal(err)
			}
			_ = client.Close()
			if _, err := server.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("read = %v, want EOF", err)
			}
			wantEnded(t, ended)
			if _, err := server.Write(make([]byte, 1)); !errors.Is(err, unix.EPIPE) {
				t.Errorf("write to a client that has gone = %v, want EPIPE", err)
			}
		})
	}
}

// Either peer may write without reading, and the other one is heard all the same. What is under way is bounded.
func TestJoinUnreadPeer(t *testing.T) {
	client, server, ended := joined(t)
	_ = server.SetWriteDeadline(time.Now().Add(time.Second))
	n, err := server.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write to a client that reads nothing = %d, %v", n, err)
	}
	if most := 2 << 20; n > most { // buffers of four sockets, and the windows
		t.Errorf("%d bytes are under way, want %d at most", n, most)
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(server, buf); err != nil || string(buf) != "hello" {
		t.Errorf("server read %q, %v", buf, err)
	}
	_ = client.Close()
	wantEnded(t, ended)
}

// A client that writes and reads nothing, and a server that sends everything back, soon wait for each other. Who is left
// when the other one goes learns it, whichever it is.
func TestJoinBothFull(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, goes := range []string{"client", "server"} {
			t.Run(network+"/"+goes, func(t *testing.T) {
				pair := map[string]func(*testing.T) (Conn, Conn){"unix": unixPair, "tcp": tcpPair}[network]
				client, server, ended := joinedBy(t, pair)
				echoed, flooded := make(chan error, 1), make(chan error, 1)
				go func() {
					_, err := io.Copy(server, server)
					_ = server.Close()
					echoed <- err
				}()
				var written atomic.Int64
				go func() {
					for buf := make([]byte, 64<<10); ; {
						n, err := client.Write(buf)
						written.Add(int64(n))
						if err != nil {
							flooded <- err
							return
						}
					}
				}()
				for before := int64(-1); before < written.Load(); time.Sleep(300 * time.Millisecond) {
					before = written.Load() // until nothing moves any more
				}
				if goes == "client" {
					_ = client.Close()
				} else {
					_ = server.Close()
				}
				for what, over := range map[string]chan error{"client's writing": flooded, "server's echo": echoed} {
					select {
					case <-over:
					case <-time.After(10 * time.Second):
						t.Errorf("the %s goes on when the %s has gone", what, goes)
					}
				}
				_ = client.Close()
				wantEnded(t, ended)
			})
		}
	}
}

func unixPair(t *testing.T) (a, b Conn) {
	a, b = socketPair(t)
	return a, b
}

// tcpPair is the two ends of a connection over the loopback.
func tcpPair(t *testing.T) (a, b Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(near.Close(), far.Close()) })
	return near.(*net.TCPConn), far.(*net.TCPConn)
}

// word is the first 4 bytes of a chunk.
func word(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func TestJoinMalformed(t *testing.T) {
	full := append(word(MaxChunk), make([]byte, MaxChunk)...)
	for name, bad := range map[string][]byte{
		"chunk too large":     word(MaxChunk + 1),
		"beyond the window":   bytes.Repeat(full, Window/MaxChunk),
		"behind the end":      append(word(0), append(word(1), 'x')...),
		"ended twice":         append(word(0), word(0)...),
		"credit for nothing":  word(creditBit | 1),
		"credit without end ": word(0xffffffff),
	} {
		t.Run(name, func(t *testing.T) {
			_, end := socketPair(t)
			// A peer that takes nothing, so that nothing is credited.
			if err := end.SetWriteBuffer(0); err != nil {
				t.Fatal(err)
			}
			guest, host := streams(t)
			ended := make(chan error, 1)
			go func() { ended <- Join(end, host) }()
			_, _ = guest.Write(bad)
			select {
			case err := <-ended:
				if !errors.Is(err, ErrForm) {
					t.Errorf("Join = %v, want ErrForm", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("Join goes on")
			}
		})
	}
}

func TestDatagram(t *testing.T) {
	message := append(make([]byte, DatagramHeader), "text"...)
	PutDatagramHeader(message, 7, 8)
	buf := make([]byte, MaxDatagram)
	n, uid, gid, err := ReadDatagram(bytes.NewReader(message), buf)
	if err != nil || string(buf[:n]) != "text" || uid != 7 || gid != 8 {
		t.Errorf("ReadDatagram = %q, %d, %d, %v", buf[:n], uid, gid, err)
	}
	if _, _, _, err := ReadDatagram(bytes.NewReader(append(word(MaxDatagram+1), make([]byte, 8)...)), buf); !errors.Is(err, ErrForm) {
		t.Errorf("ReadDatagram of one too large = %v, want ErrForm", err)
	}
}

// Packets keep their bounds, the empty one and the longest included, and the end of either side ends the other.
func TestJoinPackets(t *testing.T) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	near, far := streams(t)
	joined := make(chan struct{})
	go func() { JoinPackets(conn, far); close(joined) }()
	buf := make([]byte, MaxPacket)
	for _, size := range []int{1, 0, 1400, 65507} {
		packet := bytes.Repeat([]byte{byte(size)}, size)
		if err := WritePacket(near, packet); err != nil {
			t.Fatal(err)
		}
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil || !bytes.Equal(buf[:n], packet) {
			t.Fatalf("packet of %d: %d bytes, %v", size, n, err)
		}
		if _, err := server.WriteToUDPAddrPort(packet, from); err != nil {
			t.Fatal(err)
		}
		if n, err = ReadPacket(near, buf); err != nil || !bytes.Equal(buf[:n], packet) {
			t.Fatalf("answer of %d: %d bytes, %v", size, n, err)
		}
	}
	if err := near.Close(); err != nil {
		t.Error(err)
	}
	if n, err := ReadPacket(near, buf); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d bytes, %v", n, err)
	}
	<-joined
}

// FuzzJoin is a side whose other side sends anything: Join ends with its stream, and the peer gets no more than was sent.
func FuzzJoin(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(word(4), "text"...))
	f.Add(append(append(word(4), "text"...), word(0)...))
	f.Add(word(creditBit | 1))
	f.Add(bytes.Repeat(append(word(1), 'x'), 20))
	f.Add(append(word(MaxChunk), "too little"...))
	f.Fuzz(func(t *testing.T, wire []byte) {
		peer, end := socketPair(t)
		guest, host := streams(t)
		ended := make(chan error, 1)
		go func() { ended <- Join(end, host) }()
		if len(wire) > 0 {
			if _, err := guest.Write(wire); err != nil {
				t.Fatal(err)
			}
		}
		_ = guest.Close()
		got, err := io.ReadAll(peer)
		if err := <-ended; err != nil && !errors.Is(err, ErrForm) {
			t.Errorf("Join = %v", err)
		}
		if err != nil && !errors.Is(err, unix.ECONNRESET) || len(got) > len(wire) {
			t.Errorf("the peer read %d bytes of %d, %v", len(got), len(wire), err)
		}
	})
}
