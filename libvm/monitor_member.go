package libvm

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// A pod's further containers, its members, live in the VM of the pod's first one, its
// sandbox. On the host each has a small process that stands for it (member.go). The
// sandbox's monitor has these requests for it:
//
//	create of the member     stand-in                    sandbox's monitor           guest
//	 |-- share ---------------------------------------------->|
//	 |<--------- what virtiofsd serves, and a pidfd of that|
//	 | mounts the member's files there
//	 |                          |-- join, with stdio -------->|-- create ------------->|
//	 |                          |<----------- held before exec|<-----------------------|
//	 |                          |-- signals, resizes -------->|
//	 |                          |<---------------- how it ended
//	delete of the member
//	 | takes the files away     (has ended)
//	 |-- release --------------------------------------------->|-- remove ------------->|
//
// All other requests about a member are those about any container, with its id. The
// monitor needs no power for any of it.

// pod is what the monitor knows of members.
type pod struct {
	members map[string]*tenant // by their ids; the monitor's lock guards it
	growing sync.Mutex         // held while the VM's memory grows
	evicted chan struct{}      // closed when the monitor's own container has ended
	leaving sync.WaitGroup     // stand-ins that have not been told the end
}

// joinParams are what a member's stand-in asks for.
type joinParams struct {
	Create guestproto.CreateRequest `json:"create"`
	State  specs.State              `json:"state"`
	// MemoryMiB is what the VM shall have for it beside the others.
	MemoryMiB int `json:"memoryMiB,omitempty"`
}

// tenant returns the container of that id, or nil.
func (m *monitor) tenant(member string) *tenant {
	if member == "" {
		return m.own
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pod.members[member]
}

// members are those there are.
func (m *monitor) members() []*tenant {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.pod.members))
}

// showShare gives whoever makes or removes a member the way into the share. It must be
// root, who has opened the socket, and be able to change mounts, which the monitor is not.
func (m *monitor) showShare(conn *net.UnixConn) error {
	if m.served.Server == nil {
		return controlReply{Error: toControlError(errors.New("the share cannot be reached: its virtiofsd has ended"))}.send(conn)
	}
	if err := (controlReply{Share: &m.served.Identity}).send(conn); err != nil {
		return err
	}
	return fdpass.Send(conn, m.served.Server)
}

// join has a member for as long as it lives.
func (m *monitor) join(conn *net.UnixConn, req *controlRequest, files []*os.File) error {
	refuse := func(err error) error {
		fdpass.CloseAll(files)
		return controlReply{Error: toControlError(err)}.send(conn)
	}
	p := req.Join
	if p == nil || p.Create.Spec == nil || p.Create.Spec.Process == nil || req.Member == "" || p.Create.Spec.Root == nil || len(files) != stdioCount(p.Create.Spec.Process)+1 {
		return refuse(errors.New("join: malformed request"))
	}
	t := newTenant(m)
	t.showFiles(files[len(files)-1], p.Create.Spec)
	t.guest, t.state, t.hooks = m.guest.in(req.Member), p.State, p.Create.Spec.Hooks != nil
	t.stdio = Stdio{Stdin: files[0], Stdout: files[1]}
	if !p.Create.Spec.Process.Terminal {
		t.stdio = pipes(files[0], files[1], files[2])
	}
	defer t.hideFiles()
	files = files[:len(files)-1]
	if err := m.admit(req.Member, t); err != nil {
		return refuse(err)
	}
	defer m.pod.leaving.Done()
	steps := recorder(req.Trace)
	if err := t.build(p, steps); err != nil {
		return refuse(err)
	}
	if t.stdio.Stdin == nil {
		fdpass.CloseAll(files[:1])
	}
	if err := (controlReply{Trace: steps.Take()}).send(conn); err != nil {
		t.fail(errors.New("its stand-in has gone"))
	}
	go t.obey(conn, req.Member)
	end := t.awaitEnd()
	return guestproto.WriteFrame(conn, execEnd{ExitStatus: end.ExitStatus, OOMKilled: end.OOMKilled})
}

// admit takes a member in, unless the VM is about to end or stands still.
func (m *monitor) admit(id string, t *tenant) error {
	m.paused.changing.Lock() // from now on a pause is that of one container
	defer m.paused.changing.Unlock()
	if m.paused.gate.isShut() {
		return errors.New("the pod's sandbox is paused")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.pod.evicted:
		return errors.New("the pod's sandbox has ended")
	default:
	}
	if m.pod.members[id] != nil {
		return fmt.Errorf("the pod has a member %s already", id)
	}
	m.pod.members[id] = t
	m.pod.leaving.Add(1)
	return nil
}

// build has the guest hold the member before its exec.
func (m *tenant) build(p *joinParams, steps *trace.Recorder) error {
	if err := m.growMemory(p.MemoryMiB); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	p.Create.NullStdin = m.stdio.Stdin == nil
	if err := m.guest.create(p.Create, steps, m.vmm.BootTimeout()); err != nil {
		return err
	}
	if err := m.connectStdio(); err != nil {
		return err
	}
	go m.awaitInit()
	go m.watchOOM()
	return nil
}

// obey carries out what the stand-in asks for. Its end is the member's.
func (m *tenant) obey(conn net.Conn, member string) {
	for {
		var msg execMessage
		if err := guestproto.ReadFrame(conn, guestproto.MaxReply, &msg); err != nil {
			select {
			case <-m.ended:
			default:
				m.fail(errors.New("its stand-in has gone"))
			}
			return
		}
		var err error
		switch {
		case len(msg.Gone) > 0:
			for i, name := range msg.Gone {
				msg.Gone[i] = path.Join(guestproto.MemberName(member), name)
			}
			m.letGoOfMounts(msg.Gone)
		case msg.Resize != nil:
			err = m.guest.call(guestproto.OpResize, guestproto.ResizeRequest{Process: guestproto.Init, Width: uint16(msg.Resize[0]), Height: uint16(msg.Resize[1])}, nil, promptly)
		default:
			err = m.signal(msg.Signal, false)
		}
		if err != nil {
			m.log.Debug("a member's stand-in", "error", err)
		}
	}
}

// awaitEnd returns how the member has ended, when its output is written and whoever asks
// about it has an answer. With the monitor's own container it ends as under a SIGKILL
// if that was killed, and otherwise as with a lost VM.
func (m *tenant) awaitEnd() guestproto.WaitReply {
	lost := guestproto.ExitStatus{Code: exitVMLost}
	end, hurry := guestproto.WaitReply{ExitStatus: lost}, m.killed
	select {
	case <-m.ended:
		end = m.end
	case <-m.givenUp:
		m.log.Warn("a member did not end on SIGKILL, and is left behind in the VM")
	case <-m.pod.evicted:
		hurry = m.pod.evicted
	}
	m.relay.drain(hurry)
	if end.ExitStatus == lost && (m.wasKilled() || m.own.wasKilled()) {
		end.ExitStatus = guestproto.ExitStatus{Signal: int(unix.SIGKILL)}
	}
	if end.ExitStatus == lost {
		m.awaited.shut(answerPatience)
	}
	m.answering.shut(answerPatience)
	return end
}

// evictPatience is how long the monitor stays to tell stand-ins of the end.
const evictPatience = 5 * time.Second

// evictMembers ends the members with the monitor's own container.
func (m *monitor) evictMembers() {
	m.mu.Lock()
	close(m.pod.evicted)
	some := len(m.pod.members) > 0
	m.mu.Unlock()
	if !some {
		return
	}
	m.vmm.Kill()
	told := make(chan struct{})
	go func() { m.pod.leaving.Wait(); close(told) }()
	select {
	case <-told:
	case <-time.After(evictPatience):
	}
}

// removePatience is more than the guest gives what is left of a container.
const removePatience = 15 * time.Second

// release forgets a member that has ended, or could not be made.
func (m *monitor) release(id string, volumes []string) error {
	if id == "" {
		return errors.New("release: malformed request")
	}
	m.mu.Lock()
	t := m.pod.members[id]
	delete(m.pod.members, id)
	m.mu.Unlock()
	if t != nil && t.relay != nil {
		t.relay.cut()
		t.relay.endInput()
	}
	return m.guest.in(id).call(guestproto.OpRemove, guestproto.RemoveRequest{Volumes: volumes}, nil, within(removePatience))
}
