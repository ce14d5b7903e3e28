// Package fdpass passes descriptors over unix sockets. The receiver checks how many
// have come.
package fdpass

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Socketpair makes the two ends of a connection: one to be kept, such as for qmp.New,
// and one to be inherited by a child (QEMU: -chardev socket,fd=N). The caller
// closes both, peer as soon as the child has been started.
func Socketpair() (conn *net.UnixConn, peer *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	peer = os.NewFile(uintptr(fds[1]), "peer")
	mine := os.NewFile(uintptr(fds[0]), "socket")
	defer mine.Close() // FileConn duplicates it
	c, err := net.FileConn(mine)
	if err != nil {
		peer.Close()
		return nil, nil, fmt.Errorf("socket: %w", err)
	}
	return c.(*net.UnixConn), peer, nil
}

// Listen makes a socket called name in a directory, for its owner alone. It uses
// the open directory, as a socket's own path may be 107 bytes long at most, and
// docker's state roots leave no room for a name. The listener's Close does not
// remove the socket; the caller does.
func Listen(dir *os.File, name string) (*net.UnixListener, error) {
	path := Path(dir, name)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", name, err)
	}
	l.SetUnlinkOnClose(false) // the path means nothing any more once the root has changed
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Path returns a short path of a file in an open directory, however long the path
// of that directory is. It is good for as long as dir is open.
func Path(dir *os.File, name string) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), name)
}

// mostFiles is how many descriptors one message carries at most.
const mostFiles = 4

// Send passes descriptors along with one byte, which says how many there are.
func Send(conn *net.UnixConn, files ...*os.File) error {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	_, _, err := conn.WriteMsgUnix([]byte{byte(len(fds))}, unix.UnixRights(fds...), nil)
	return err
}

// Receive receives what Send has sent. The caller closes the files. It is an error,
// with no files, if more or fewer have come than Send says. That is also so if the
// kernel left some out for want of room (MSG_CTRUNC, recvmsg(2)).
func Receive(conn *net.UnixConn) ([]*os.File, error) {
	said := make([]byte, 1)
	n, files, err := receive(conn, said, mostFiles)
	if err != nil {
		return nil, err
	}
	if n != 1 || len(files) != int(said[0]) {
		CloseAll(files)
		return nil, fmt.Errorf("%d descriptors came, not %d", len(files), said[0])
	}
	return files, nil
}

// receive reads one message with up to most descriptors.
func receive(conn *net.UnixConn, text []byte, most int) (n int, files []*os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(4*most))
	n, oobn, flags, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return n, nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			CloseAll(files)
			return n, nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		CloseAll(files)
		return n, nil, fmt.Errorf("more than %d descriptors came, or no room was left for them", most)
	}
	return n, files, nil
}

// SendNamed sends fd to the socket at path as docs/terminals.md of runc describes:
// one message, a name with the descriptor beside it, no answer expected.
func SendNamed(path, name string, fd uintptr) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	_, _, err = conn.WriteMsgUnix([]byte(name), unix.UnixRights(int(fd)), nil)
	return errors.Join(err, conn.Close())
}

// ReceiveNamed waits for a connection to l and receives what SendNamed has sent.
// The caller closes the file.
func ReceiveNamed(l *net.UnixListener) (*os.File, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_, files, err := receive(conn, make([]byte, 4096), 1)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		CloseAll(files)
		return nil, fmt.Errorf("%d descriptors came, not 1", len(files))
	}
	return files[0], nil
}

// CheckPeer returns an error if the process at the other end belongs to another
// user.
func CheckPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, peerErr); err != nil {
		return err
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to uid %d", peer.Uid)
	}
	return nil
}

// CloseAll closes files and ignores errors. It is for files that were only read, or
// that somebody else has a copy of, so that nothing can be lost.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // read-only or already handed on: nothing is lost
	}
}
