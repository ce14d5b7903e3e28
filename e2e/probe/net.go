package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/boxlite-oci/boxlite/e2e/stream"
)

// serve NETWORK ADDRESS echoes what it gets, over tcp or udp, and prints "listening" when it does.
func serve(args []string) error {
	if args[0] == "udp" {
		conn, err := net.ListenPacket("udp", args[1])
		if err != nil {
			return err
		}
		fmt.Println("listening")
		buf := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return err
			}
			if _, err := conn.WriteTo(buf[:n], from); err != nil {
				return err
			}
		}
	}
	l, err := net.Listen(args[0], args[1])
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // the other side judges what came back
		}()
	}
}

// dial NETWORK ADDRESS TEXT sends the text and prints what comes back.
func dial(args []string) error {
	conn, err := net.DialTimeout(args[0], args[1], 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, args[2]); err != nil {
		return err
	}
	buf := make([]byte, len(args[2]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	fmt.Println(string(buf))
	return nil
}

// echoSum ADDRESS SIZE sends a stream over tcp and compares what is echoed with it.
func echoSum(args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", args[0], 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, stream.NewReader(3, size))
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	got, err := stream.Sum(conn)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	want, err := stream.Sum(stream.NewReader(3, size))
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("echoed %s, sent %s", got, want)
	}
	fmt.Println(got)
	return nil
}
