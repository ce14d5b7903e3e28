package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/sockrelay"
)

// A hostSocket stands for a socket of the host's: guestinit listens in its place.
type hostSocket struct {
	listener  *net.UnixListener // nil if it takes datagrams
	datagrams *net.UnixConn     // nil if it takes connections
}

// openSockets makes the sockets that bind mounts of the container have for source.
// They stay until the VM ends.
func openSockets(wanted []guestproto.Socket) (sockets []hostSocket, err error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	if err := os.MkdirAll(guestproto.SocketDir, 0o755); err != nil {
		return nil, err
	}
	for i, w := range wanted {
		s, err := openSocket(filepath.Join(guestproto.SocketDir, strconv.Itoa(i)), w)
		if err != nil {
			return nil, fmt.Errorf("socket %d: %w", i, err)
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

func openSocket(path string, wanted guestproto.Socket) (s hostSocket, err error) {
	if wanted.Datagram {
		s.datagrams, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err == nil {
			err = passCredentials(s.datagrams)
		}
	} else {
		s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	}
	if err != nil {
		return s, err
	}
	if err := unix.Chown(path, int(wanted.UID), int(wanted.GID)); err != nil {
		return s, &os.PathError{Op: "chown", Path: path, Err: err}
	}
	return s, unix.Chmod(path, wanted.Mode&0o7777)
}

// passCredentials has each datagram come with who sent it.
func passCredentials(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, setErr)
}

// hostSocket finds the socket that a request names.
func (s *server) hostSocket(req *guestproto.SocketRequest) (hostSocket, error) {
	c, err := s.container(guestproto.First)
	if err != nil {
		return hostSocket{}, err
	}
	if req.Socket < 0 || req.Socket >= len(c.sockets) {
		return hostSocket{}, guestproto.Errorf(guestproto.CodeBadRequest, "no socket %d", req.Socket)
	}
	return c.sockets[req.Socket], nil
}

// acceptClient waits for a client of a socket, and carries its connection over the
// stream of the request.
func (s *server) acceptClient(req *guestproto.SocketRequest, stream *yamux.Stream) error {
	socket, err := s.hostSocket(req)
	if err != nil {
		return err
	}
	if socket.listener == nil {
		return guestproto.Errorf(guestproto.CodeBadRequest, "socket %d takes datagrams", req.Socket)
	}
	conn, err := socket.listener.AcceptUnix()
	if err != nil {
		return err
	}
	client, err := peerOf(conn)
	if err == nil {
		err = reply(stream, guestproto.AcceptReply{UID: client.Uid, GID: client.Gid}, nil)
	}
	if err != nil {
		debugf("a client of socket %d: %v", req.Socket, errors.Join(err, conn.Close()))
		return stream.Close()
	}
	if err := sockrelay.Join(conn, stream); err != nil {
		logf("a client of socket %d: %v", req.Socket, err)
	}
	return nil
}

func peerOf(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, credErr)
}

// carryDatagrams sends what comes for a socket over the stream of the request.
func (s *server) carryDatagrams(req *guestproto.SocketRequest, stream *yamux.Stream) error {
	socket, err := s.hostSocket(req)
	if err != nil {
		return err
	}
	if socket.datagrams == nil {
		return guestproto.Errorf(guestproto.CodeBadRequest, "socket %d takes connections", req.Socket)
	}
	if err := reply(stream, nil, nil); err != nil {
		return err
	}
	err = relayDatagrams(stream, socket.datagrams)
	debugf("datagrams of socket %d: %v", req.Socket, errors.Join(err, stream.Close()))
	return nil
}

func relayDatagrams(stream io.Writer, conn *net.UnixConn) error {
	buf := make([]byte, sockrelay.DatagramHeader+sockrelay.MaxDatagram)
	// There is room for who sent it. There is none for descriptors, which the kernel
	// closes then.
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf[sockrelay.DatagramHeader:], oob)
		if err != nil {
			return err
		}
		if flags&unix.MSG_TRUNC != 0 {
			logf("a datagram of more than %d bytes for a socket of the host's was dropped", sockrelay.MaxDatagram)
			continue
		}
		sender, err := senderOf(oob[:oobn])
		if err != nil {
			logf("a datagram for a socket of the host's was dropped: %v", err)
			continue
		}
		message := buf[:sockrelay.DatagramHeader+n]
		sockrelay.PutDatagramHeader(message, sender.Uid, sender.Gid)
		if _, err := stream.Write(message); err != nil {
			return err
		}
	}
}

func senderOf(oob []byte) (*unix.Ucred, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, errors.New("a datagram of nobody's")
	}
	return unix.ParseUnixCredentials(&messages[0])
}
