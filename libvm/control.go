package libvm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// The control socket is how boxlite's commands reach a container's monitor. A
// connection carries one request; frames are those of guestproto.
//
//	command                                monitor
//	 |-- one byte, with stdio descriptors ->|   the byte says how many there are
//	 |-- controlRequest ------------------->|
//	 |<------------------ controlReply -----|
//
// For an exec the connection stays open as long as the process lives:
//
//	 |-- execMessage (signal, resize) ----->|   any number
//	 |<---------------- exit status ---------|   then both sides close
//
// Of an exec that is not detached, execExit comes when its output has ended too.
// The command's end closing early kills the exec process. After a request for
// events the monitor sends an eventMessage for each until the container ends.
//
// The connection of a join is that of an exec, for the process that stands for a pod's
// member. Requests about that member come to the same socket, with its id.

type controlOp string

const (
	controlStart  controlOp = "start"
	controlSignal controlOp = "signal"
	controlExec   controlOp = "exec"
	controlPause  controlOp = "pause"
	controlResume controlOp = "resume"
	controlUpdate controlOp = "update"
	controlStats  controlOp = "stats"
	controlEvents controlOp = "events"
	// These are for the members of a pod: see monitor_member.go.
	controlShare   controlOp = "share"
	controlJoin    controlOp = "join"
	controlRelease controlOp = "release"
)

type controlRequest struct {
	Op controlOp `json:"op"`
	// Member is the container that it is about; empty for the monitor's own.
	Member string        `json:"member,omitempty"`
	Signal int           `json:"signal,omitempty"`
	All    bool          `json:"all,omitempty"`
	Exec   *execParams   `json:"exec,omitempty"`
	Update *updateParams `json:"update,omitempty"`
	Join   *joinParams   `json:"join,omitempty"`
	// Volumes are those that go with a member.
	Volumes []string `json:"volumes,omitempty"`
	// Trace asks for the steps of a start in the reply.
	Trace bool `json:"trace,omitempty"`
}

type execParams struct {
	Process *specs.Process `json:"process"`
	Cgroup  string         `json:"cgroup,omitempty"`
	// IgnorePaused has a paused container execute it once it is resumed.
	IgnorePaused bool `json:"ignorePaused,omitempty"`
	// Detached says that the command ends with the process, and its outputs may go
	// on. Otherwise both end with the outputs, or those with a terminal.
	Detached bool `json:"detached,omitempty"`
}

type controlReply struct {
	Error *controlError `json:"error,omitempty"`
	// Stats are the answer to controlStats.
	Stats *guestproto.StatsReply `json:"stats,omitempty"`
	// Share is the answer to controlShare; the server's pidfd follows.
	Share *rootfs.Identity `json:"share,omitempty"`
	Trace []trace.Span     `json:"trace,omitempty"`
}

// controlError is an error on its way from the monitor to a command: a guest's, or
// one of the monitor's, which has no code. Kind says which sentinel it matches.
type controlError struct {
	Message string          `json:"message"`
	Code    guestproto.Code `json:"code,omitempty"`
	Kind    string          `json:"kind,omitempty"`
}

func (e *controlError) Error() string { return e.Message }

// Unwrap gives the sentinel, and the guest's error where it is one.
func (e *controlError) Unwrap() (errs []error) {
	if sentinel, ok := sentinelKinds[e.Kind]; ok {
		errs = append(errs, sentinel)
	}
	if e.Code != "" {
		errs = append(errs, &guestproto.Error{Code: e.Code, Message: e.Message})
	}
	return errs
}

// execEnd is the end of an exec's process, or of a member: its status, or what became of
// the VM.
type execEnd struct {
	guestproto.ExitStatus
	OOMKilled bool          `json:"oomKilled,omitempty"` // of a member
	Error     *controlError `json:"error,omitempty"`
}

type execMessage struct {
	Signal int     `json:"signal,omitempty"`
	Resize *[2]int `json:"resize,omitempty"` // width, height
	// Gone are mounts of a member's share that the host has taken away.
	Gone []string `json:"gone,omitempty"`
}

// sentinelKinds are the errors whose identity crosses the control socket.
var sentinelKinds = map[string]error{
	"not-running": ErrNotRunning,
	"running":     ErrRunning,
	"paused":      ErrPaused,
	"vm-lost":     ErrVMLost,
	"protocol":    ErrProtocol,
	"no-answer":   vmm.ErrNoAnswer,
	"disk-full":   unix.ENOSPC,
}

// toControlError is nil for a nil error.
func toControlError(err error) *controlError {
	if err == nil {
		return nil
	}
	e := &controlError{Message: err.Error()}
	for kind, sentinel := range sentinelKinds {
		if errors.Is(err, sentinel) {
			e.Kind = kind
		}
	}
	var ge *guestproto.Error
	if errors.As(err, &ge) {
		e.Code = ge.Code
	}
	return e
}

// err keeps a nil *controlError from becoming an error that is not nil.
func (e *controlError) err() error {
	if e == nil {
		return nil
	}
	return e
}

// dialControl connects to the monitor of the container whose state lies in dir
// and makes the request; stdio is passed along. The connection is open if and
// only if the error is nil.
func dialControl(dir string, req controlRequest, stdio ...*os.File) (_ *net.UnixConn, reply controlReply, err error) {
	conn, err := connectControl(dir)
	if err != nil {
		return nil, reply, err
	}
	reply, err = askControl(conn, req, stdio...)
	if err != nil {
		return conn, reply, errors.Join(err, conn.Close())
	}
	return conn, reply, nil
}

// connectControl connects to the monitor. A connection takes one request.
func connectControl(dir string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) { // of a pod's sandbox that was deleted
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: fdpass.Path(d, socketFile), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%w (its monitor does not answer: %s)", ErrNotRunning, fault.Quiet(err.Error()))
	}
	return conn, nil
}

// askControl makes a connection's request, with copies of stdio.
func askControl(conn *net.UnixConn, req controlRequest, stdio ...*os.File) (reply controlReply, err error) {
	if err := exchange(conn, &req, &reply, stdio); err != nil {
		return reply, fmt.Errorf("%s: %w", req.Op, err)
	}
	if err := reply.Error.err(); err != nil {
		return reply, err
	}
	return reply, conn.SetDeadline(time.Time{})
}

// exchange makes a request on a new connection. A monitor that ends meanwhile, be it
// before it has the request, is a lost VM.
func exchange(conn *net.UnixConn, req *controlRequest, reply *controlReply, stdio []*os.File) error {
	err := conn.SetDeadline(req.deadline())
	if err == nil {
		err = fdpass.Send(conn, stdio...)
	}
	if err == nil {
		err = guestproto.WriteFrame(conn, req)
	}
	if err == nil {
		err = guestproto.ReadFrame(conn, guestproto.MaxReply, reply)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return ErrVMLost
	}
	if err != nil {
		return fmt.Errorf("the monitor: %w", err)
	}
	return nil
}

// deadline is when a request is given up. The monitor bounds its own waits, which are
// shorter; this one is for a monitor that does not answer at all. A start lasts as long
// as its hooks, an exec in a paused container as long as the pause, and a join as long
// as the guest may take to make a container.
func (r *controlRequest) deadline() time.Time {
	switch {
	case r.Op == controlStart, r.Op == controlJoin, r.Op == controlExec && r.Exec.IgnorePaused:
		return time.Time{}
	case r.Op == controlSignal:
		return time.Now().Add(signalTimeout)
	default:
		return time.Now().Add(controlTimeout)
	}
}

const (
	// signalTimeout is more than the monitor gives the guest for a signal, killPatience
	// included.
	signalTimeout  = 7 * time.Second
	controlTimeout = 90 * time.Second
)

// receiveRequest is the monitor's side of dialControl. The caller owns the
// files, also when there is an error.
func receiveRequest(conn *net.UnixConn) (req controlRequest, files []*os.File, err error) {
	if files, err = fdpass.Receive(conn); err == nil {
		err = guestproto.ReadFrame(conn, guestproto.MaxRequest, &req)
	}
	return req, files, err
}

func (r controlReply) send(conn io.Writer) error { return guestproto.WriteFrame(conn, r) }
