// Package hostsocket connects to unix sockets of the host that binds of a container
// name. A process of its own does that, the dialer:
//
//   - It can reach these sockets and, in the host's file systems, has nothing else to
//     do. The monitor, which reads what a guest sends, has no way to them.
//   - It takes the ids of the client in the container before it connects. So a server
//     that asks for them (SO_PEERCRED) does not take everybody for root.
//
// The monitor tells it little: a number of a socket, two ids and, for a datagram, its
// bytes. The dialer ends with the monitor.
package hostsocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/self"
)

// Command is the hidden command that calls RunDialer.
const Command = "socket-dialer"

// ErrRefused is matched by the error for a client with ids that the container does not
// have.
var ErrRefused = errors.New("not an id of the container's")

// opened is the dialer's answer to its configuration, a plan.HostSockets.
type opened struct {
	Sockets []guestproto.Socket `json:"sockets,omitempty"`
	// Error is about the socket with that number, or with a negative one about the
	// dialer.
	Error  string `json:"error,omitempty"`
	Socket int    `json:"socket,omitempty"`
}

// maxAnswer bounds the dialer's answer, which is ours.
const maxAnswer = 1 << 20

// Dialer is the monitor's end of the dialer.
type Dialer struct {
	wanted  plan.HostSockets
	links   []chan *net.UnixConn
	sync    *net.UnixConn
	process *exec.Cmd
	ended   chan struct{}
}

// Start starts the dialer, which sees the file systems that the caller sees now. The
// caller goes on to Open, and closes the Dialer.
func Start(wanted plan.HostSockets) (*Dialer, error) {
	cmd, err := self.Command(nil, nil, Command)
	if err != nil {
		return nil, err
	}
	conn, peer, err := fdpass.Socketpair()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = []*os.File{peer}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	cmd.Dir = "/"
	err = cmd.Start()
	_ = peer.Close() // the dialer has its own
	if err != nil {
		return nil, errors.Join(fault.Wrap("start the dialer of sockets", err), conn.Close())
	}
	d := &Dialer{wanted: wanted, sync: conn, process: cmd, ended: make(chan struct{})}
	go func() {
		defer close(d.ended)
		_ = cmd.Wait() // whoever dials next hears of its end
	}()
	if err := guestproto.WriteFrame(conn, wanted); err != nil {
		d.Close()
		return nil, fault.Wrap("dialer of sockets", err)
	}
	return d, nil
}

// Open waits until the dialer has found the sockets, and returns how the guest shall
// show them. An error of one of them names it.
func (d *Dialer) Open() ([]guestproto.Socket, error) {
	var got opened
	err := guestproto.ReadFrame(d.sync, maxAnswer, &got)
	if got.Error != "" && got.Socket < 0 {
		err = errors.New(got.Error)
	}
	if err != nil {
		return nil, fault.Wrap("dialer of sockets", err)
	}
	if got.Error != "" {
		s := d.wanted.Sockets[got.Socket]
		return nil, fmt.Errorf("mount %s: source %s: %s", s.Destination, s.Source, got.Error)
	}
	for range d.wanted.Sockets {
		files, err := fdpass.Receive(d.sync)
		if err != nil {
			return nil, fault.Wrap("dialer of sockets", err)
		}
		link, err := net.FileConn(files[0])
		fdpass.CloseAll(files)
		if err != nil {
			return nil, fault.Wrap("dialer of sockets", err)
		}
		turn := make(chan *net.UnixConn, 1)
		turn <- link.(*net.UnixConn)
		d.links = append(d.links, turn)
	}
	return got.Sockets, nil
}

// closePatience is how long the dialer, which has nothing to finish, may take to end.
const closePatience = 2 * time.Second

// Close ends the dialer. Connections that it has made go on.
func (d *Dialer) Close() {
	_ = d.sync.Close() // which is the sign
	select {
	case <-d.ended:
	case <-time.After(closePatience):
		_ = d.process.Process.Kill() // it may have ended
		<-d.ended
	}
}

// request is what is asked of the dialer: two ids, and behind them a datagram's bytes.
const request = 8

// Dial connects to a socket for a client with these ids. The caller closes the
// connection. The error is ErrRefused, or that of the host's kernel: EAGAIN after ten
// seconds in which the server has accepted nobody.
func (d *Dialer) Dial(socket int, uid, gid uint32) (*net.UnixConn, error) {
	file, err := d.ask(socket, uid, gid, nil)
	if err != nil {
		return nil, err
	}
	if file == nil {
		return nil, errors.New("the dialer of sockets gave no connection")
	}
	defer file.Close() // FileConn duplicates it
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// Send sends a datagram to a socket for a client with these ids. The error is as
// Dial's: EAGAIN after ten seconds in which the receiver has taken nothing.
func (d *Dialer) Send(socket int, uid, gid uint32, datagram []byte) error {
	_, err := d.ask(socket, uid, gid, datagram)
	return err
}

// ask makes one request, when those before it have been answered.
func (d *Dialer) ask(socket int, uid, gid uint32, datagram []byte) (file *os.File, err error) {
	link := <-d.links[socket]
	defer func() { d.links[socket] <- link }()
	message := make([]byte, request, request+len(datagram))
	binary.BigEndian.PutUint32(message, uid)
	binary.BigEndian.PutUint32(message[4:], gid)
	if _, err := link.Write(append(message, datagram...)); err != nil {
		return nil, fmt.Errorf("the dialer of sockets has ended: %s", fault.Quiet(err.Error()))
	}
	errno, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := link.ReadMsgUnix(errno, oob)
	if err != nil || n != 1 {
		return nil, errors.New("the dialer of sockets has ended")
	}
	switch {
	case errno[0] == refused:
		return nil, ErrRefused
	case errno[0] != 0:
		return nil, unix.Errno(errno[0])
	case oobn == 0:
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "host socket"), nil
}
