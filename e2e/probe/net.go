package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

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

// loopback mptcp|vsock TEXT sends the text through a connection to itself, and prints it, behind the protocol's number.
func loopback(args []string) error {
	var family, protocol int
	var addr unix.Sockaddr
	switch args[0] {
	case "mptcp":
		family, protocol, addr = unix.AF_INET, unix.IPPROTO_MPTCP, &unix.SockaddrInet4{Port: 5000, Addr: [4]byte{127, 0, 0, 1}}
	case "vsock":
		family, addr = unix.AF_VSOCK, &unix.SockaddrVM{Port: 5000, CID: unix.VMADDR_CID_LOCAL}
	default:
		return fmt.Errorf("unknown kind %q", args[0])
	}
	listener, err := unix.Socket(family, unix.SOCK_STREAM, protocol)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(listener, addr); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	client, err := unix.Socket(family, unix.SOCK_STREAM, protocol)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(client, addr); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	server, _, err := unix.Accept(listener)
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	if _, err := unix.Write(client, []byte(args[1])); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	buf := make([]byte, len(args[1]))
	n, err := unix.Read(server, buf)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	number, err := unix.GetsockoptInt(server, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return fmt.Errorf("protocol: %w", err)
	}
	fmt.Println(number, string(buf[:n]))
	return nil
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

// echoSum ADDRESS SIZE sends a stream over tcp, or to a socket at a path, and compares what is echoed with it.
func echoSum(args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	network := "tcp"
	if strings.HasPrefix(args[0], "/") {
		network = "unix"
	}
	conn, err := net.DialTimeout(network, args[0], 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, stream.NewReader(3, size))
		sent <- errors.Join(err, conn.(interface{ CloseWrite() error }).CloseWrite())
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

// dialMany PATH N connects to a socket N times, has each connection echo a text when all are there, and ends them.
func dialMany(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var conns []net.Conn
	for range n {
		conn, err := net.DialTimeout("unix", args[0], 10*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	results := make(chan error)
	for i, conn := range conns {
		go func() {
			text := fmt.Sprintf("client %d", i)
			buf := make([]byte, len(text))
			_, err := io.WriteString(conn, text)
			if err == nil {
				_, err = io.ReadFull(conn, buf)
			}
			if err == nil && string(buf) != text {
				err = fmt.Errorf("client %d heard %q", i, buf)
			}
			results <- err
		}()
	}
	for range conns {
		err = errors.Join(err, <-results)
	}
	return err
}

// linger PATH connects to a socket, says so, and says when the other end has closed the connection.
func linger(args []string) error {
	conn, err := net.DialTimeout("unix", args[0], 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println("connected")
	n, err := io.Copy(io.Discard, conn)
	fmt.Printf("over after %d bytes: %v\n", n, err)
	return nil
}

// flood PATH writes to a socket until that fails, and says how.
func flood(args []string) error {
	conn, err := net.DialTimeout("unix", args[0], 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println("connected")
	for buf := make([]byte, 64<<10); ; {
		if _, err := conn.Write(buf); err != nil {
			fmt.Println("over:", err)
			return nil
		}
	}
}

// pass NETWORK PATH TEXT sends the text to a socket with a descriptor beside it, and over unix reads the text back.
func pass(args []string) error {
	conn, err := net.Dial(args[0], args[1])
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) { sendErr = unix.Sendmsg(int(fd), []byte(args[2]), unix.UnixRights(0), nil, 0) })
	if err := errors.Join(err, sendErr); err != nil || args[0] != "unix" {
		return err
	}
	buf := make([]byte, len(args[2]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	fmt.Println(string(buf))
	return nil
}

// datagram PATH TEXT sends the text to a socket that takes datagrams.
func datagram(args []string) error {
	conn, err := net.Dial("unixgram", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.WriteString(conn, args[1])
	return err
}
