package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A hostServer listens on a unix socket of the host and echoes.
type hostServer struct {
	path     string
	listener *net.UnixListener

	mu    sync.Mutex
	peers []unix.Ucred // of all clients so far
	open  map[*net.UnixConn]bool
}

// hostServer starts a server at path, for the case.
func (e *env) hostServer(path string, mode os.FileMode) *hostServer {
	e.Helper()
	s := &hostServer{path: path, open: map[*net.UnixConn]bool{}}
	var err error
	s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	e.noErr(err)
	e.noErr(os.Chmod(path, mode))
	e.Cleanup(s.stop)
	go s.serve()
	return s
}

func (s *hostServer) serve() {
	for {
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			return
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.open[conn] = true
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				s.peers = append(s.peers, *cred)
			}
		})
		s.mu.Unlock()
		go func() {
			_, _ = io.Copy(conn, conn) // the other side judges what came back
			_ = conn.Close()
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.open, conn)
		}()
	}
}

// stop ends the server as a crash does: its connections end, and the socket's file is gone.
func (s *hostServer) stop() {
	_ = s.listener.Close() // it may have been stopped
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.open {
		_ = conn.Close()
	}
}

func (s *hostServer) clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// lastPeer is the ids of the client that came last.
func (s *hostServer) lastPeer() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers) == 0 {
		return "none"
	}
	last := s.peers[len(s.peers)-1]
	return fmt.Sprintf("%d:%d", last.Uid, last.Gid)
}

// A server of the host's at its socket, as a database has one: what a client in a container sees of it.
func TestHostSocket(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		path := filepath.Join(dir, "server.sock")
		server := e.hostServer(path, 0o666)
		id := e.start("-v", path+":/run/server.sock", "busybox", "sleep", "1000")
		dial := func(text string) result {
			return e.docker("exec", id, "probe", "dial", "unix", "/run/server.sock", text)
		}
		e.want("answer", dial("hello").stdout, "hello\n")
		e.want("what is there", e.exec(id, "stat", "-c", "%F %a %u:%g", "/run/server.sock"), "socket 666 0:0")
		e.exec(id, "probe", "echo-sum", "/run/server.sock", "67108864") // it writes no more, and reads the rest
		e.exec(id, "probe", "dial-many", "/run/server.sock", "100")
		if err := waitFor("all clients are gone", func() bool { return server.clients() == 0 }); err != nil {
			e.Error(err)
		}
	})
}
