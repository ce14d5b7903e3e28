package hostsocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/sockrelay"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/lockdown"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
)

// refused is the answer for ErrRefused: no error number is as high.
const refused = 255

// A server that is busy lets its clients wait: connecting, or sending a datagram. After
// that time the error is EAGAIN.
var patience = unix.Timeval{Sec: 10}

// RunDialer is the life of the dialer. It ends when the monitor does.
func RunDialer(sync *net.UnixConn, _ *slog.Logger) int {
	var wanted plan.HostSockets
	if err := guestproto.ReadFrame(sync, maxAnswer, &wanted); err != nil {
		return 1
	}
	sockets, answer, err := openAll(wanted)
	if err == nil {
		err = lockdown.EnterForUsers(unix.CAP_DAC_OVERRIDE, unix.CAP_SETUID, unix.CAP_SETGID)
	}
	if err != nil {
		answer.Error = err.Error()
	}
	if err := guestproto.WriteFrame(sync, answer); err != nil || answer.Error != "" {
		return 1
	}
	for _, s := range sockets {
		if err := errors.Join(fdpass.Send(sync, s.far), s.far.Close()); err != nil {
			return 1
		}
		go s.serve()
	}
	_, _ = sync.Read(make([]byte, 1)) // nothing is said: it returns when the monitor has gone
	return 0
}

// openAll opens the sockets. An error is about the one that the answer names.
func openAll(wanted plan.HostSockets) (sockets []*socket, answer opened, err error) {
	// A server may ask for its client's groups too (SO_PEERGROUPS), and shall not hear
	// of those of who calls boxlite.
	if err := unix.Setgroups(nil); err != nil && !userns.RunningInUserNS() {
		return nil, opened{Socket: -1}, os.NewSyscallError("setgroups", err)
	}
	if err := rootfs.Detach(); err != nil {
		return nil, opened{Socket: -1}, err
	}
	for i, w := range wanted.Sockets {
		answer.Socket = i
		s := &socket{datagram: w.Datagram, peers: &wanted, sender: -1}
		shown, err := s.open(w.Source)
		if err != nil {
			return nil, answer, err
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, answer, err
		}
		s.link, s.far = fds[0], os.NewFile(uintptr(fds[1]), "link")
		sockets, answer.Sockets = append(sockets, s), append(answer.Sockets, shown)
	}
	answer.Socket = -1
	return sockets, answer, nil
}

// A socket is one of the host's.
type socket struct {
	datagram bool
	peers    *plan.HostSockets
	// link is where the requests come, and far the monitor's end, until it has that.
	link int
	far  *os.File
	// node is the socket that was there when the container was made, as a mount of its
	// own that is attached nowhere. It is what a bind mount keeps.
	node int
	// path has no symbolic links.
	path string
	// sender is connected to where datagrams go; -1 for none.
	sender int
}

// open finds the socket at path, and says how the guest shall show it.
func (s *socket) open(path string) (shown guestproto.Socket, err error) {
	if s.node, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
		return shown, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(s.node, &st); err != nil {
		return shown, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return shown, errors.New("not a socket any more")
	}
	node, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return shown, err
	}
	defer node.Close()
	if s.path, err = os.Readlink(descriptor(int(node.Fd()))); err != nil {
		return shown, err
	}
	return guestproto.Socket{Datagram: s.datagram, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}, nil
}

// descriptor is a path of what a descriptor has open. It is short, unlike a socket's
// own path may be.
func descriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// serve answers the monitor's requests, one after the other, on a thread that has the
// ids of the last client.
func (s *socket) serve() {
	runtime.LockOSThread()
	buf := make([]byte, request+sockrelay.MaxDatagram)
	for {
		n, err := unix.Read(s.link, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n < request {
			return // the monitor has gone
		}
		fd, err := s.act(binary.BigEndian.Uint32(buf), binary.BigEndian.Uint32(buf[4:]), buf[request:n])
		answer(s.link, fd, err)
	}
}

// act does what one request asks for. The connection is -1 for a datagram.
func (s *socket) act(uid, gid uint32, datagram []byte) (connection int, err error) {
	if err := s.become(uid, gid); err != nil {
		return -1, err
	}
	if s.datagram {
		return -1, s.send(datagram)
	}
	return s.connect(unix.SOCK_STREAM)
}

// answer tells the monitor what has come of a request. The connection is the monitor's
// from then on.
func answer(link, connection int, err error) {
	code := []byte{0}
	var errno unix.Errno
	switch {
	case errors.Is(err, ErrRefused):
		code[0] = refused
	case errors.As(err, &errno):
		code[0] = byte(errno)
	case err != nil:
		code[0] = byte(unix.EIO)
	}
	var rights []byte
	if connection >= 0 {
		rights = unix.UnixRights(connection)
		defer unix.Close(connection)
	}
	_ = unix.Sendmsg(link, code, rights, nil, 0) // it may have gone
}

// become gives the calling thread the ids of a client. Its capabilities stay: the
// guest's kernel has decided that the client may connect.
func (s *socket) become(uid, gid uint32) error {
	if u := s.peers.User; u != nil {
		uid, gid = u.UID, u.GID
	}
	const none = ^uint32(0) // to the kernel: as it is
	if uid == none || gid == none || !contains(s.peers.UIDs, uid) || !contains(s.peers.GIDs, gid) {
		return ErrRefused
	}
	// The effective ids are what a connection shows, the real ones what a datagram does.
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), keep); errno != 0 {
		return ErrRefused
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), keep); errno != 0 {
		return ErrRefused
	}
	return nil
}

// contains says whether an id of the host's is one of the container's.
func contains(mappings []specs.LinuxIDMapping, id uint32) bool {
	return len(mappings) == 0 || slices.ContainsFunc(mappings, func(m specs.LinuxIDMapping) bool { return id >= m.HostID && id-m.HostID < m.Size })
}

// connect connects a new socket of a type to the socket that was there when the
// container was made. If nobody has that open any more, its server may have started
// anew: then it is the socket that is at the path now.
func (s *socket) connect(style int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, style|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience)
	if err == nil {
		err = connectTo(fd, s.node)
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		err = s.connectAnew(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// connectAnew connects to the socket at the path. No symbolic link is followed: who may
// write to a directory on the way cannot lead it elsewhere.
func (s *socket) connectAnew(fd int) error {
	node, err := unix.Openat2(unix.AT_FDCWD, s.path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return err
	}
	defer unix.Close(node)
	return connectTo(fd, node)
}

func connectTo(fd, node int) error {
	for {
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: descriptor(node)})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// send sends a datagram as the calling thread's ids are. A receiver that has gone may
// be back.
func (s *socket) send(datagram []byte) (err error) {
	for range 2 {
		if s.sender < 0 {
			if s.sender, err = s.connect(unix.SOCK_DGRAM); err != nil {
				return err
			}
		}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Sendmsg(s.sender, datagram, nil, nil, unix.MSG_NOSIGNAL)
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.EPIPE) {
			return err
		}
		_ = unix.Close(s.sender)
		s.sender = -1
	}
	return err
}
