package libvm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// serve answers the control socket.
func (m *monitor) serve(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			m.log.Warn("control socket", "error", err)
			return
		}
		go func() {
			defer conn.Close()
			if err := m.answer(conn); err != nil && !errors.Is(err, io.EOF) {
				m.log.Debug("control request", "error", err)
			}
		}()
	}
}

func (m *monitor) answer(conn *net.UnixConn) error {
	req, files, err := receiveRequest(conn)
	if err != nil {
		fdpass.CloseAll(files)
		return err
	}
	if req.Op == controlJoin {
		return m.join(conn, &req, files)
	}
	t := m.tenant(req.Member)
	if req.Op == controlExec && t != nil {
		return t.exec(conn, req.Exec, files)
	}
	fdpass.CloseAll(files)
	switch req.Op {
	case controlShare:
		return m.showShare(conn)
	case controlRelease:
		return controlReply{Error: toControlError(m.release(req.Member, req.Volumes))}.send(conn)
	}
	if t == nil || !t.answering.enter(nil) {
		return controlReply{Error: toControlError(ErrNotRunning)}.send(conn)
	}
	defer t.answering.leave()
	switch req.Op {
	case controlStart:
		return t.answerStart(conn, req.Trace)
	case controlEvents:
		return t.sendEvents(conn)
	}
	return t.carryOut(&req).send(conn)
}

// answerStart starts the container, and ends it unless all the world is told that it
// runs: a start that fails, or whose command is killed before it has written that
// down, leaves no process that nobody knows of.
func (m *tenant) answerStart(conn *net.UnixConn, traced bool) error {
	steps := recorder(traced)
	err := m.explain(m.start(steps))
	if errors.Is(err, ErrRunning) {
		return controlReply{Error: toControlError(err)}.send(conn)
	}
	if err != nil {
		if m.isOwn() && !errors.Is(err, ErrVMLost) {
			m.markKilled() // the caller kills the monitor, and may find that it has ended
		}
		defer m.fail(fmt.Errorf("start: %w", err)) // which kills a member
	}
	reply := controlReply{Error: toControlError(err), Trace: steps.Take()}
	sendErr := reply.send(conn)
	if err != nil {
		return sendErr
	}
	var ev monitorEvent
	if err := errors.Join(sendErr, guestproto.ReadFrame(conn, guestproto.MaxReply, &ev)); err != nil || ev.Event != eventCommitted {
		m.fail(errors.New("start went away before it had written down that the container runs"))
	}
	return nil
}

// carryOut does what a request asks for that is over with its reply.
func (m *tenant) carryOut(req *controlRequest) (reply controlReply) {
	var err error
	switch req.Op {
	case controlSignal:
		err = m.signal(req.Signal, req.All)
	case controlPause:
		err = m.pause()
	case controlResume:
		err = m.resume()
	case controlUpdate:
		err = m.update(req.Update)
	case controlStats:
		reply.Stats, err = m.stats()
	default:
		err = fmt.Errorf("unknown request %q", req.Op)
	}
	reply.Error = toControlError(m.explain(err))
	return reply
}

// exec runs a further process for the connection's other end. If the VM ends under the
// exec, the other end is told so; the monitor waits for that before it ends itself.
func (m *tenant) exec(conn *net.UnixConn, p *execParams, files []*os.File) error {
	refuse := func(err error) error {
		fdpass.CloseAll(files)
		return controlReply{Error: toControlError(m.explain(err))}.send(conn)
	}
	if p == nil || p.Process == nil || len(files) != stdioCount(p.Process) {
		return refuse(errors.New("exec: malformed request"))
	}
	if p.IgnorePaused && (!m.paused.gate.await(m.ended) || !m.frozen.await(m.ended) || hungUp(conn)) {
		fdpass.CloseAll(files)
		return ErrNotRunning
	}
	if !m.awaited.enter(nil) {
		fdpass.CloseAll(files)
		return ErrVMLost // the connection's end says as much
	}
	told := sync.OnceFunc(m.awaited.leave)
	defer told()
	m.mu.Lock()
	m.nextExec++
	id := "exec" + strconv.Itoa(m.nextExec)
	m.mu.Unlock()
	stdio := Stdio{Stdin: files[0], Stdout: files[1]}
	if !p.Process.Terminal {
		stdio = pipes(files[0], files[1], files[2])
	}
	if stdio.Stdin == nil {
		fdpass.CloseAll(files[:1])
	}
	req := guestproto.ExecRequest{ID: id, Process: p.Process, Cgroup: p.Cgroup, NullStdin: stdio.Stdin == nil, PlainNewlines: p.Process.Terminal && !p.Detached}
	if err := m.startExec(req); err != nil {
		return refuse(err)
	}
	relay, err := startRelay(m.guest, id, stdio)
	if err != nil {
		m.killExec(id)
		return refuse(err)
	}
	if err := (controlReply{}).send(conn); err != nil {
		relay.endInput()
		m.killExec(id)
		return err
	}
	gone := make(chan struct{})
	go func() {
		m.obeyExec(conn, id)
		close(gone)
	}()
	end, err := m.guest.wait(id)
	if (errors.Is(err, ErrVMLost) || errors.Is(err, ErrProtocol)) && m.lostUnder() {
		err = m.explain(err)
		relay.endInput()
		return errors.Join(err, guestproto.WriteFrame(conn, execEnd{Error: toControlError(err)}))
	}
	told()
	if err != nil {
		end.Signal = int(unix.SIGKILL) // it died with the VM
	}
	switch {
	case p.Detached:
		relay.catchUp(end, m.killed)
		go m.linger(relay)
	case p.Process.Terminal: // its children lose the terminal, as under runc
		relay.catchUp(end, m.killed)
		relay.cut()
	default:
		relay.linger(gone, m.ended, m.killed)
	}
	if !p.Detached {
		relay.endInput()
	}
	return guestproto.WriteFrame(conn, execEnd{ExitStatus: end.ExitStatus})
}

// lostUnder says of a VM that has ended that neither the container's end was the reason
// nor a SIGKILL.
func (m *tenant) lostUnder() bool {
	select {
	case <-m.ended:
		return m.end.ExitStatus == guestproto.ExitStatus{Code: exitVMLost} && !m.wasKilled()
	case <-m.lost:
	}
	select {
	case <-m.ended:
		return m.end.ExitStatus == guestproto.ExitStatus{Code: exitVMLost} && !m.wasKilled()
	default:
		return !m.wasKilled()
	}
}

// mostLingering is how many processes of detached execs may have ended and left
// children behind that hold their outputs.
const mostLingering = 128

// linger waits for the end of the outputs of a detached exec whose process has
// ended. If there are too many such, the oldest one's end.
func (m *tenant) linger(r *relay) {
	stop := make(chan struct{})
	m.mu.Lock()
	m.lingering = append(m.lingering, stop)
	if len(m.lingering) > mostLingering {
		close(m.lingering[0])
		m.lingering = m.lingering[1:]
	}
	m.mu.Unlock()
	r.linger(stop, m.ended, m.killed)
	m.mu.Lock()
	m.lingering = slices.DeleteFunc(m.lingering, func(c chan struct{}) bool { return c == stop })
	m.mu.Unlock()
	r.endInput()
}

// startExec has the guest execute a process. One that the guest has begun to start
// when the patience for it is over does not stay.
func (m *tenant) startExec(req guestproto.ExecRequest) error {
	if !m.paused.gate.enter(nil) {
		return ErrPaused
	}
	defer m.paused.gate.leave()
	if !m.frozen.enter(nil) {
		return ErrPaused
	}
	defer m.frozen.leave()
	c := m.guest.begin(guestproto.OpExec, req, nil, 0)
	stream, err := c.await(promptly)
	if errors.Is(err, vmm.ErrNoAnswer) {
		go func() {
			if c.abandon(); c.err == nil {
				m.killExec(req.ID)
			}
		}()
	}
	if err != nil {
		return err
	}
	return stream.Close()
}

// killExec ends an exec's process that nobody stands for.
func (m *tenant) killExec(id string) {
	if err := m.guest.signal(id, int(unix.SIGKILL), false); err != nil {
		m.log.Debug("end an exec's process", "process", id, "error", err) // it has usually ended already
	}
}

// hungUp says that the connection's other end has closed it.
func hungUp(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	closed := false
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		closed = n == 0 && err == nil
	})
	return closed || err != nil
}

func stdioCount(p *specs.Process) int {
	if p.Terminal {
		return 2
	}
	return 3
}

// obeyExec carries out what the exec command asks for its process, and kills the
// process when the command has gone.
func (m *tenant) obeyExec(conn net.Conn, id string) {
	for {
		var msg execMessage
		if err := guestproto.ReadFrame(conn, guestproto.MaxReply, &msg); err != nil {
			if m.paused.gate.await(m.ended) {
				m.killExec(id)
			}
			return
		}
		if !m.paused.gate.await(m.ended) { // what comes during a pause waits in the socket
			return
		}
		var err error
		if msg.Resize != nil {
			err = m.guest.call(guestproto.OpResize, guestproto.ResizeRequest{Process: id, Width: uint16(msg.Resize[0]), Height: uint16(msg.Resize[1])}, nil, promptly)
		} else {
			err = m.guest.signal(id, msg.Signal, false)
		}
		if err != nil {
			m.log.Debug("exec request", "process", id, "error", err)
		}
	}
}

// recorder is for steps that a command puts together with its own; nil if it did
// not ask.
func recorder(asked bool) *trace.Recorder {
	if !asked {
		return nil
	}
	return trace.New(time.Unix(0, 0))
}
