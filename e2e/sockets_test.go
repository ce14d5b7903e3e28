package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
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

// stop ends the server: its connections end, and the socket's file is gone.
func (s *hostServer) stop() {
	_ = s.listener.Close() // it may have been stopped
	s.hangUp()
}

// hangUp closes the server's connections.
func (s *hostServer) hangUp() {
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
		e.want("answer to text with a descriptor", e.exec(id, "probe", "pass", "unix", "/run/server.sock", "hello"), "hello")
		e.exec(id, "probe", "echo-sum", "/run/server.sock", "67108864") // it writes no more, and reads the rest
		e.exec(id, "probe", "dial-many", "/run/server.sock", "100")
		if err := waitFor("all clients are gone", func() bool { return server.clients() == 0 }); err != nil {
			e.Error(err)
		}
	})
}

// A hostServer's mode and owner decide who may connect, and its peers are the ids that they are in the container.
func TestHostSocketPermissions(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		path := filepath.Join(dir, "server.sock")
		server := e.hostServer(path, 0o660)
		e.noErr(os.Chown(path, 0, 77))
		mount := []string{"-v", path + ":/run/server.sock", "busybox", "probe", "dial", "unix", "/run/server.sock", "hello"}
		for _, c := range []struct {
			flags []string
			peer  string // empty for nobody who may connect
		}{
			{nil, "0:0"},
			{[]string{"-u", "1000:1000"}, ""},
			{[]string{"-u", "1000:77"}, "1000:77"},
			{[]string{"-u", "1000:1000", "--group-add", "77"}, "1000:1000"},
			{[]string{"--cap-drop", "ALL", "-u", "5:0"}, ""},
		} {
			r := e.run(append(c.flags, mount...)...)
			if c.peer == "" {
				e.wantPart("answer to "+strings.Join(c.flags, " "), r.stderr, "permission denied")
				continue
			}
			e.want("answer to "+strings.Join(c.flags, " "), r.stdout, "hello\n")
			e.want("peer of the server", server.lastPeer(), c.peer)
		}

		// In a container of root's, each client is itself.
		id := e.start("-v", path+":/run/server.sock", "busybox", "sleep", "1000")
		e.noErr(os.Chmod(path, 0o666)) // for those that come later; the container has the mode of its start
		e.want("answer to another user", e.exec("-u", "1234:77", id, "probe", "dial", "unix", "/run/server.sock", "hello"), "hello")
		e.want("peer of the server", server.lastPeer(), "1234:77")
	})
}

// Whatever becomes of either end, the other one hears of it, and nothing is left.
func TestHostSocketEnds(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		path := filepath.Join(dir, "server.sock")
		server := e.hostServer(path, 0o666)
		id := e.start("-v", path+":/run/server.sock", "busybox", "sleep", "1000")
		e.exec(id, "probe", "dial", "unix", "/run/server.sock", "hello")
		gone := func() bool { return server.clients() == 0 }
		e.noErr(waitFor("the first client is gone", gone))
		before := e.openFiles(id)

		// The client is killed, idle and with much under way.
		for _, what := range []string{"linger", "flood"} {
			s := e.session("exec", id, "probe", what, "/run/server.sock")
			s.expect("connected\n")
			e.exec(id, "sh", "-c", "kill -9 $(pidof probe)")
			if err := waitFor("the server's connection ends", gone); err != nil {
				e.Error(what, err)
			}
			s.end()
		}

		// The server's end is closed, while the client waits and while it writes.
		for what, want := range map[string]string{"linger": "over after 0 bytes: <nil>\n", "flood": "over: "} {
			s := e.session("exec", id, "probe", what, "/run/server.sock")
			s.expect("connected\n")
			e.noErr(waitFor("the server has a client", func() bool { return server.clients() == 1 }))
			server.hangUp()
			s.expect(want)
			e.want("exit code of "+what, itoa(s.end()), "0")
		}
		if err := waitFor("all files are closed", func() bool { return e.openFiles(id) == before }); err != nil {
			e.Errorf("%v: %d open files, %d before", err, e.openFiles(id), before)
		}

		// The container is killed.
		s := e.session("exec", id, "probe", "linger", "/run/server.sock")
		s.expect("connected\n")
		e.noErr(waitFor("the server has a client", func() bool { return server.clients() == 1 }))
		e.ok("kill", id)
		if err := waitFor("the server's connection ends with the container", gone); err != nil {
			e.Error(err)
		}
		s.end()
	})
}

// openFiles counts the descriptors of a container's process and of what it has started on the host: in a VM the monitor
// and the dialer of sockets.
func (e *env) openFiles(id string) (n int) {
	e.Helper()
	for pid := range strings.FieldsSeq(e.shOut("pid=" + e.inspect(id, ".State.Pid") + "; echo $pid; pgrep -P $pid -x boxlite || :")) {
		entries, err := os.ReadDir("/proc/" + pid + "/fd")
		e.noErr(err)
		n += len(entries)
	}
	return n
}

// A server that starts anew makes another socket at its path. A bind mount keeps the old one, so a container of runc's has
// lost its server; a VM's monitor connects to the new one.
func TestHostSocketServerRestarts(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		path := filepath.Join(dir, "server.sock")
		server := e.hostServer(path, 0o666)
		id := e.start("-v", path+":/run/server.sock", "busybox", "sleep", "1000")
		dial := func() result { return e.docker("exec", id, "probe", "dial", "unix", "/run/server.sock", "hello") }
		e.want("answer", dial().stdout, "hello\n")
		server.stop()
		e.wantCode(dial(), 1) // within the deadline of a client that waits for an answer
		server = e.hostServer(path, 0o666)
		want := ""
		if e.rt.isVM() {
			want = "hello\n"
		}
		e.want("answer of the new server", dial().stdout, want)

		// No link is followed to where the user has not pointed.
		server.stop()
		elsewhere := e.hostServer(filepath.Join(dir, "elsewhere.sock"), 0o666)
		e.noErr(os.Symlink(elsewhere.path, path))
		e.wantCode(dial(), 1)
		e.want("peer of the server elsewhere", elsewhere.lastPeer(), "none")
	})
}

// Datagrams, as syslog has them.
func TestHostSocketDatagrams(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		path := filepath.Join(dir, "log")
		log := e.datagrams(path)
		id := e.start("-v", path+":/dev/log", "busybox", "sleep", "1000")
		e.exec(id, "logger", "-t", "tagged", "first words")
		e.wantPart("the log's first", log.next(e), "tagged: first words")
		e.exec(id, "probe", "pass", "unixgram", "/dev/log", "with a descriptor")
		e.want("a datagram with a descriptor", log.next(e), "with a descriptor")
		long := strings.Repeat("long ", 10000)
		e.exec("-u", "1234:77", id, "probe", "datagram", "/dev/log", long)
		e.want("a datagram of 50,000 bytes", log.next(e), long)
		e.want("its sender", log.sender, "1234:77")
		s := e.session("exec", id, "sh", "-c", "for i in $(seq 300); do echo line $i; done | logger -t many") // more than wait in a queue
		for i := range 300 {
			text := log.next(e)
			if !strings.HasSuffix(strings.TrimSpace(text), fmt.Sprintf("many: line %d", i+1)) {
				e.Fatalf("datagram %d = %q", i, text)
			}
		}
		e.want("exit code", itoa(s.end()), "0")
	})
}

// datagramLog takes datagrams.
type datagramLog struct {
	conn   *net.UnixConn
	sender string // ids of the last one's
}

func (e *env) datagrams(path string) *datagramLog {
	e.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	e.noErr(err)
	e.Cleanup(func() { e.noErr(conn.Close()) })
	e.noErr(os.Chmod(path, 0o666))
	raw, err := conn.SyscallConn()
	e.noErr(err)
	e.noErr(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }))
	e.noErr(err)
	return &datagramLog{conn: conn}
}

// next is the next datagram.
func (l *datagramLog) next(e *env) string {
	e.Helper()
	e.noErr(l.conn.SetReadDeadline(time.Now().Add(20 * time.Second)))
	buf, oob := make([]byte, 128<<10), make([]byte, unix.CmsgSpace(unix.SizeofUcred)) // no room for descriptors
	n, oobn, _, _, err := l.conn.ReadMsgUnix(buf, oob)
	e.noErr(err)
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	e.noErr(err)
	cred, err := unix.ParseUnixCredentials(&messages[0])
	e.noErr(err)
	l.sender = fmt.Sprintf("%d:%d", cred.Uid, cred.Gid)
	return string(buf[:n])
}

// The engine's own socket, with Debian's client in the container.
func TestHostSocketOfDocker(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.patient()
		image := e.wholeImage("dind", dindSuite)
		socket := e.d.socket()
		id := e.start("--name", "client", "-v", socket+":/var/run/docker.sock", "--entrypoint", "sleep", image, "10000")
		inside := func(script string) string {
			e.Helper()
			return e.exec(id, "bash", "-ec", script)
		}
		e.want("ps", inside("docker ps --format '{{.Names}}'"), "client")
		e.want("run -i", inside("echo through | docker run --rm -i --runtime runc busybox cat"), "through")

		// A terminal within a terminal, attach, exec, logs -f.
		s := e.terminal("exec", "-it", id, "docker", "run", "-it", "--runtime", "runc", "--name", "inner", "busybox", "sh")
		s.expect("# ")
		s.send("echo $((6*7)) is on the $(tty)\r")
		s.expect("42 is on the /dev/pts/0\r\n")
		e.want("exec", inside("docker exec inner hostname"), inside("docker inspect --format '{{.Config.Hostname}}' inner"))
		a := e.terminal("exec", "-it", id, "docker", "attach", "inner")
		a.send("\r")
		a.expect("# ")
		f := e.session("exec", id, "docker", "logs", "-f", "inner")
		f.expect("42 is on the /dev/pts/0")
		a.send("echo $((7*8)) for all; exit 3\r")
		for _, each := range []*session{s, a, f} {
			each.expect("56 for all")
		}
		e.want("exit code of run -it", itoa(s.end()), "3")
		e.want("exit code of attach", itoa(a.end()), "3")
		e.want("exit code of logs -f", itoa(f.end()), "0")

		e.want("cp", inside("echo copied >/in; docker cp /in inner:/there; docker cp inner:/there /out; cat /out; docker rm inner"), "copied\ninner")
		e.want("build", inside(`mkdir /context; echo of the context >/context/file
printf 'FROM busybox\nCOPY file /file\nCMD cat /file\n' >/context/Dockerfile
DOCKER_BUILDKIT=0 docker build -q -t built-inside /context >/dev/null
docker run --rm --runtime runc built-inside; docker rmi built-inside >/dev/null`), "of the context")

		const size = "268435456"
		want := inside("docker run --rm --runtime runc busybox sh -c 'probe gen 5 " + size + " | probe sum'")
		e.want("256 MiB from the daemon and back", inside("set -o pipefail; docker run --rm --runtime runc busybox probe gen 5 "+size+
			" | docker run --rm -i --runtime runc busybox probe sum"), want)
	})
}

// bindSocket gives a container a socket of the host's at /server.sock.
func bindSocket(path string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/server.sock", Type: "bind", Source: path, Options: []string{"bind"}})
	}
}

// In a user namespace the socket's owner and the server's peer are the host's ids.
func TestHostSocketInUserNamespace(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		server := h.hostServer(filepath.Join(h.diskDir(), "server.sock"), 0o600)
		h.noErr(os.Chown(server.path, 100007, 200007))
		b := h.bundle("userns-socket", "stat -c %u:%g /server.sock; probe dial unix /server.sock hello; exec sleep 1000", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
			bindSocket(server.path)(s)
		})
		h.noErr(sh(fmt.Sprintf("chmod o+x %s %s && chown -R 100000:200000 %s", workDir, b.dir, b.rootfs(""))))
		c := h.create(b)
		c.start()
		h.expect(c.out, "7:7\nhello\n")
		h.want("peer of the server", server.lastPeer(), "100000:200000")
		h.must("exec", "--user", "7:7", b.id, "probe", "dial", "unix", "/server.sock", "hello")
		h.want("peer of the server", server.lastPeer(), "100007:200007")
		h.must("delete", "--force", b.id)
		c.out.wait()
	})
}

// A VM that is a template's copy, or that has stood by, has the sockets of its container.
func TestHostSocketOfCopies(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := h.diskDir()
		server := h.hostServer(filepath.Join(dir, "server.sock"), 0o600)
		h.withTemplates(filepath.Join(dir, "templates"))
		b := h.bundle("copies-socket", "probe dial unix /server.sock works", bindSocket(server.path))
		h.startedFrom(b)
		if from, _ := h.startedFrom(b); from == "" {
			h.Error("the second container has booted")
		}
		service := h.standby(1)
		keeper := h.oneKeeper(filepath.Join(dir, "templates"))
		c := h.create(b)
		if !h.isOf(b, keeper) {
			h.Errorf("keeper %d is not in the container's cgroup: %v", keeper, h.processesOf(b))
		}
		c.start()
		h.want("end", c.end().String(), "exit code 0")
		h.want("stdout", c.out.wait(), "works\n")
		h.must("delete", b.id)
		service.expect(" ready\n")
		h.endStandby(service)
	})
}

// What switches it off, and what is wrong before a container is made.
func TestHostSocketRefused(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := h.diskDir()
		server := h.hostServer(filepath.Join(dir, "server.sock"), 0o666)
		annotated := func(value string) func(*specs.Spec) {
			return func(s *specs.Spec) {
				bindSocket(server.path)(s)
				s.Annotations = map[string]string{"boxlite.host-sockets": value}
			}
		}
		const script = "stat -c %F /server.sock; probe dial unix /server.sock hello; exit 0"
		for name, c := range map[string]struct {
			flags []string
			value string
			want  string
		}{
			"on":         {nil, "on", "socket\nhello\n"},
			"annotation": {nil, "off", "socket\n"},
			"flag":       {[]string{"--host-sockets", "off"}, "on", "socket\n"},
		} {
			h.flags = c.flags
			b := h.bundle("sockets-"+name, script, annotated(c.value))
			r := h.cmd("run", "--bundle", b.dir, b.id)
			h.want("stdout, switched by "+name, r.stdout, c.want)
		}
		h.flags = nil
		b := h.bundle("sockets-bad", script, annotated("yes"))
		h.wantFail(`annotation boxlite.host-sockets=.*yes.*: on or off`, "run", "--bundle", b.dir, b.id)
		h.flags = []string{"--host-sockets", "yes"}
		h.wantFail(`--host-sockets .*yes.*: on or off`, "run", "--bundle", b.dir, b.id)
		h.flags = nil
		server.stop()
		b = h.bundle("sockets-gone", script, bindSocket(server.path))
		h.wantFail("mount /server.sock: source "+server.path+": no such file or directory", "run", "--bundle", b.dir, b.id)

		// Nobody listens any more: a server may come.
		server = h.hostServer(server.path, 0o666)
		server.listener.SetUnlinkOnClose(false)
		server.stop()
		b = h.bundle("sockets-dead", "until probe dial unix /server.sock hello; do echo waits; sleep 1; done", bindSocket(server.path))
		c := h.create(b)
		c.start()
		h.expect(c.out, "waits\n")
		h.noErr(os.Remove(server.path))
		h.hostServer(server.path, 0o666)
		h.expect(c.out, "hello\n")
		h.want("end", c.end().String(), "exit code 0")
		h.wantPart("log", c.errs.wait(), "boxlite could not connect to the socket "+server.path)
		h.must("delete", b.id)
		c.out.wait()
	})
}

// A container whose process is not root is never root to a server, whatever the guest says.
func TestHostSocketOfAnOrdinaryUser(t *testing.T) {
	eachVM(t, func(e *env) {
		server := e.hostServer(filepath.Join(e.diskDir(), "server.sock"), 0o666)
		id := e.start("-u", "1000:77", "-v", server.path+":/server.sock", "busybox", "sleep", "1000")
		e.want("answer to root", e.exec("-u", "0", id, "probe", "dial", "unix", "/server.sock", "hello"), "hello")
		e.want("peer of the server", server.lastPeer(), "1000:77")
	})
}

// Podman, and an ordinary user's: all in the container are that user to the server.
func TestPodmanHostSocket(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		dir := e.hostDir()
		server := e.hostServer(filepath.Join(dir, "server.sock"), 0o600)
		want := "0:0"
		if e.rootless {
			want = itoa(userID) + ":" + itoa(userID)
			e.noErr(os.Chown(server.path, userID, userID))
		}
		e.want("answer", e.runOK("-v", server.path+":/server.sock", "busybox", "sh", "-c", "stat -c %u:%g /server.sock; probe dial unix /server.sock hello"), "0:0\nhello")
		e.want("peer of the server", server.lastPeer(), want)
	})
}

// dockerd comes back with another socket, and the container has lived on.
func TestHostSocketDockerRestarts(t *testing.T) {
	eachVM(t, func(e *env) {
		id := e.start("-v", e.d.socket()+":/docker.sock", "busybox", "sleep", "1000")
		ping := func() string {
			e.Helper()
			return e.exec(id, "probe", "dial", "unix", "/docker.sock", "GET /_ping HTTP/1.0\r\n\r\n")
		}
		e.wantPart("answer", ping(), "200 OK")
		e.noErr(e.d.stop())
		e.noErr(e.d.start())
		e.wantPart("answer after the restart", ping(), "200 OK")
	})
}

// A pause that is longer than a guest may take nothing, with much under way, and a server that goes meanwhile.
func TestHostSocketWhilePaused(t *testing.T) {
	eachRuntime(t, func(e *env) {
		server := e.hostServer(filepath.Join(e.diskDir(), "server.sock"), 0o666)
		id := e.start("-v", server.path+":/server.sock", "busybox", "sleep", "1000")
		idle := e.session("exec", id, "probe", "linger", "/server.sock")
		idle.expect("connected\n")
		through := e.session("exec", id, "probe", "echo-sum", "/server.sock", "67108864")
		e.noErr(waitFor("both clients", func() bool { return server.clients() == 2 || through.hasEnded() })) // at once, in runc
		e.ok("pause", id)
		time.Sleep(12 * time.Second) // no event tells that nothing goes wrong
		e.ok("unpause", id)
		e.want("exit code of 64 MiB there and back", itoa(through.end()), "0")
		e.ok("pause", id)
		server.hangUp()
		e.ok("unpause", id)
		idle.expect("over after 0 bytes: <nil>\n")
		idle.end()
	})
}

// The dialer is killed, and the monitor.
func TestHostSocketPartsKilled(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		server := h.hostServer(filepath.Join(h.diskDir(), "server.sock"), 0o666)
		b := h.bundle("socket-killed", "probe linger /server.sock; probe dial unix /server.sock hello; exec sleep 1000", bindSocket(server.path))
		c := h.create(b)
		c.start()
		h.expect(c.out, "connected\n")
		h.noErr(unix.Kill(h.childrenOf(c.pid)["boxlite"], unix.SIGKILL))
		h.noErr(waitFor("the client", func() bool { return server.clients() == 1 }))
		server.hangUp()
		h.expect(c.out, "over after 0 bytes: <nil>\n") // connections go on without it
		h.expect(c.errs, "probe dial:")                // and there are no new ones
		h.wantStatus(b.id, specs.StateRunning)
		h.must("delete", "--force", b.id)
		c.out.wait()

		b = h.bundle("socket-monitor-killed", "exec probe linger /server.sock", bindSocket(server.path))
		c = h.create(b)
		c.start()
		h.expect(c.out, "connected\n")
		h.noErr(unix.Kill(c.pid, unix.SIGKILL))
		c.end()
		h.noErr(waitFor("the client has gone", func() bool { return server.clients() == 0 }))
		h.wantNoProcess(b)
		h.must("delete", b.id)
		c.out.wait()
	})
}
