package hostnet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

const (
	// maxQueries bounds the queries that are being answered at one time.
	maxQueries = 64
	// queryTimeout is longer than clients wait, which then ask again.
	queryTimeout = 10 * time.Second
	// dnsHeader is the size of a message without any records, in bytes.
	dnsHeader = 12
)

// ServeDNS answers the queries that come over stream, framed as DNS over TCP,
// by asking the resolver that Docker runs at 127.0.0.11 inside ns. Responses
// go back in whatever order they come, matched by their ids; a query that is
// not answered in time is forgotten.
//
// It returns when stream ends (nil at a clean end) or ctx does, and after all
// its queries have. The stream stays the caller's to close; to end ServeDNS in
// mid-read the caller closes it.
func ServeDNS(ctx context.Context, ns *os.File, stream io.ReadWriter) error {
	return serveDNS(ctx, ns, stream, net.JoinHostPort(guestproto.DNSAddress, "53"))
}

func serveDNS(ctx context.Context, ns *os.File, stream io.ReadWriter, server string) error {
	ctx, cancel := context.WithCancel(ctx)
	var queries sync.WaitGroup
	defer queries.Wait()
	defer cancel()

	slots := make(chan struct{}, maxQueries)
	in := bufio.NewReader(stream)
	var out sync.Mutex
	for {
		query, err := readDNS(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read query: %w", err)
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		queries.Go(func() {
			defer func() { <-slots }()
			response, err := ask(ctx, ns, server, query)
			if err != nil {
				return // the client's own time-out speaks for it
			}
			out.Lock()
			defer out.Unlock()
			if err := writeDNS(stream, response); err != nil {
				cancel() // the reader sees the same end
			}
		})
	}
}

// ask puts one query over UDP, and over TCP where UDP cannot carry it.
func ask(ctx context.Context, ns *os.File, server string, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	response, err := exchange(ctx, ns, "udp", server, query)
	const truncated = 0x02
	if err == nil && response[2]&truncated == 0 {
		return response, nil
	}
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	if whole, err := exchange(ctx, ns, "tcp", server, query); err == nil {
		return whole, nil
	}
	return response, err
}

func exchange(ctx context.Context, ns *os.File, network, server string, query []byte) ([]byte, error) {
	var conn net.Conn
	err := in(ns, func() error {
		// An address of digits is dialled on the calling goroutine.
		var err error
		conn, err = new(net.Dialer).DialContext(ctx, network, server)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	if network == "tcp" {
		if err := writeDNS(conn, query); err != nil {
			return nil, err
		}
		response, err := readDNS(bufio.NewReader(conn))
		if err == nil && !answers(response, query) {
			err = errors.New("response to another query")
		}
		return response, err
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], query) {
			return buf[:n], nil
		}
	}
}

// answers says whether message is a response with the query's id.
func answers(message, query []byte) bool {
	return len(message) >= dnsHeader && message[0] == query[0] && message[1] == query[1] && message[2]&0x80 != 0
}

// readDNS reads one framed message. Anything shorter than a header is an error.
func readDNS(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n < dnsHeader {
		return nil, fmt.Errorf("message of %d bytes", n)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return message, nil
}

func writeDNS(w io.Writer, message []byte) error {
	frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(message)), uint16(len(message)))
	_, err := w.Write(append(frame, message...))
	return err
}
