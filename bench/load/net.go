package main

import (
	"fmt"
	"io"
	"net"
	"time"
)

const (
	netMiB     = 256
	roundTrips = 2000
)

// network sends to, fetches from and exchanges single bytes with bench's server, which does what the first byte of a
// connection says: 's' takes all, 'f' gives, 'e' echoes.
func network(address string) (Figures, error) {
	f := Figures{}
	for _, step := range []struct {
		name string
		do   func(net.Conn) (float64, error)
	}{
		{"send", send},
		{"fetch", fetch},
		{"echo", echo},
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		if _, err := conn.Write([]byte(step.name[:1])); err != nil {
			return nil, err
		}
		f[step.name], err = step.do(conn)
		_ = conn.Close() // the server has had all that counts
		if err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return f, nil
}

// send returns MiB/s, counted until the server has said that it has all.
func send(c net.Conn) (float64, error) {
	began := time.Now()
	buf := make([]byte, bufferBytes)
	for range netMiB * mib / bufferBytes {
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	if _, err := io.ReadAll(c); err != nil {
		return 0, err
	}
	return netMiB / time.Since(began).Seconds(), nil
}

// fetch returns MiB/s.
func fetch(c net.Conn) (float64, error) {
	began := time.Now()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, c, make([]byte, bufferBytes))
	if err != nil {
		return 0, err
	}
	return float64(n) / mib / time.Since(began).Seconds(), nil
}

// echo returns the seconds of one round trip.
func echo(c net.Conn) (float64, error) {
	began := time.Now()
	var b [1]byte
	for range roundTrips {
		if _, err := c.Write(b[:]); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return 0, err
		}
	}
	return time.Since(began).Seconds() / roundTrips, nil
}
