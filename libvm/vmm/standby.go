package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/self"
	"github.com/boxlite-oci/boxlite/libvm/turn"
)

// A standby VM is started ahead of its container: QEMU runs, has loaded the
// state of a template and stands still. A keeper, which is a process of boxlite's
// own for each of them, starts it, hands it to the first monitor that wants a VM
// of that template, and stays as QEMU's parent:
//
//	monitor                                     keeper
//	 |-- connect to standby/KEY-PID.sock --------->|  which then goes: a VM has one container
//	 |<------------- one byte, with descriptors ---|  control port, QMP, console, virtiofsd's socket
//	 |<------------------------------- handover ---|
//	 |                                             |
//	 |-- close the sending half ------------------>|  kills QEMU
//	 |<------------------------------ vmEnd -------|  when QEMU has ended, why ever
//
// The monitor's end closes the connection too, so that no VM outlives it. Keeper
// and QEMU have namespaces of their own, in which they find nobody else, and belong
// to the container's cgroup from when create has put them there.

// standbyDir is where the sockets of standby VMs are, in the directory of the
// templates.
const standbyDir = "standby"

// Handover is what a keeper tells the monitor about its VM, beside the descriptors.
type Handover struct {
	Keeper int `json:"keeper"` // pid, as the host sees it
}

// vmEnd is how QEMU has ended, and the end of what it wrote to stderr.
type vmEnd struct {
	Status string `json:"status"`
	Stderr string `json:"stderr"`
}

// maxVMEnd bounds a vmEnd, in bytes.
const maxVMEnd = 64 << 10

// keeperConfig is what Standby tells a keeper: fields of its Factory, and the
// shape.
type keeperConfig struct {
	Parts       parts.Options `json:"parts"`
	Accel       string        `json:"accel"`
	TemplateDir string        `json:"templateDir"`
	Shape       plan.Shape    `json:"shape"`
	Example     *specs.Spec   `json:"example"`
}

// keeperEvent is what a keeper tells Standby: keeperReady or keeperFailed, and then
// keeperTaken. Standby tells it to give up by closing its sending half.
type keeperEvent struct {
	Event string `json:"event"`
	Key   string `json:"key,omitempty"` // of the template, with keeperReady
	Error string `json:"error,omitempty"`
}

const (
	keeperReady  = "ready"  // the VM stands by
	keeperFailed = "failed" // it could not be started, or has ended
	keeperTaken  = "taken"  // a monitor has it
)

// Standby keeps n VMs of a shape ready until ctx is done. A zero MemoryMiB or VCPUs
// means what a container without limits gets. It needs the host's root.
//
// Each VM has rehearsed the life of a container. The spec of that container is
// example; its rootfs and program do not matter. A container whose VM looks the
// same takes one of the VMs. Standby starts another in its place, at a moment when
// no emulated start has a turn.
//
// Standby calls ready with the template's key for each VM. It returns when the VMs
// that nobody took have ended.
func (f *Factory) Standby(ctx context.Context, shape plan.Shape, example *specs.Spec, n int, ready func(key string)) error {
	if os.Geteuid() != 0 || userns.RunningInUserNS() {
		return errors.New("standby VMs are for the host's root alone")
	}
	if acc, _, err := accel.Resolve(f.Accel); err == nil && acc == accel.KVM && accel.Emulated() {
		return errors.New("host: this machine's KVM is an emulated one, which loses VMs that stand by (--accel tcg keeps them)")
	}
	type end struct {
		keeper *standbyKeeper
		err    error
	}
	ends := make(chan end)
	waiting := map[*standbyKeeper]bool{}
	defer func() {
		for k := range waiting {
			_ = k.sync.CloseWrite() // it may have ended already
		}
		for range waiting {
			<-ends
		}
	}()
	for {
		for len(waiting) < n && ctx.Err() == nil {
			k, err := f.startKeeper(ctx, shape, example)
			if err != nil {
				return err
			}
			waiting[k] = true
			go func() { ends <- end{k, k.awaitTaken()} }()
			ready(k.key)
		}
		select {
		case e := <-ends:
			delete(waiting, e.keeper)
			if e.err != nil {
				f.Log.Warn(e.err.Error())
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// standbyKeeper is a keeper as Standby sees it.
type standbyKeeper struct {
	process *exec.Cmd
	sync    *net.UnixConn
	key     string
	socket  string // where it hands out its VM
}

// startKeeper returns when the VM is ready. It makes the template if there is
// none any more.
func (f *Factory) startKeeper(ctx context.Context, shape plan.Shape, example *specs.Spec) (_ *standbyKeeper, err error) {
	if _, err := f.CreateTemplate(shape); err != nil {
		return nil, err
	}
	acc, _, err := accel.Resolve(f.Accel)
	if err != nil {
		return nil, err
	}
	if acc == accel.TCG {
		if err := turn.AwaitCalm(ctx, f.TurnFile, turn.Patience); err != nil {
			f.Log.Debug("a standby VM is started beside containers", "because", err)
		}
	}
	conn, theirs, err := fdpass.Socketpair()
	if err != nil {
		return nil, fault.Wrap("socket to a keeper", err)
	}
	k := &standbyKeeper{sync: conn}
	if k.process, err = self.Command(f.SelfArgs, nil, "standby-keeper"); err != nil {
		return nil, errors.Join(err, conn.Close(), theirs.Close())
	}
	k.process.Dir, k.process.ExtraFiles = "/", []*os.File{theirs}
	k.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	err = k.process.Start()
	_ = theirs.Close() // now, so that the keeper's end shows
	if err != nil {
		return nil, errors.Join(fault.Wrap("start a keeper", err), conn.Close())
	}
	cfg := keeperConfig{Parts: f.Parts, Accel: f.Accel, TemplateDir: f.TemplateDir, Shape: shape, Example: example}
	ev := keeperEvent{Error: "it ended before its VM was ready"}
	_ = guestproto.WriteFrame(conn, cfg) // a keeper that has ended shows in the next read
	_ = guestproto.ReadFrame(conn, guestproto.MaxReply, &ev)
	if ev.Event != keeperReady {
		_ = conn.Close()
		_ = k.process.Wait() // what it said says more
		// It has removed its stage itself, unless it was killed.
		_ = os.RemoveAll(stageOf(filepath.Join(f.TemplateDir, standbyDir), k.process.Process.Pid))
		return nil, fmt.Errorf("start a VM: %s", ev.Error)
	}
	k.key, k.socket = ev.Key, filepath.Join(f.TemplateDir, standbyDir, socketName(ev.Key, k.process.Process.Pid))
	return k, nil
}

// awaitTaken returns nil when a monitor has the VM, or else when its keeper has
// ended.
func (k *standbyKeeper) awaitTaken() error {
	defer k.sync.Close()
	ev := keeperEvent{Error: "its keeper ended"}
	if err := guestproto.ReadFrame(k.sync, guestproto.MaxReply, &ev); err == nil && ev.Event == keeperTaken {
		go func() { _ = k.process.Wait() }() // its status is the container's business
		return nil
	}
	_ = k.process.Wait()
	_ = os.Remove(k.socket) // it has done so itself, unless it was killed
	return fmt.Errorf("VM: %s", ev.Error)
}

// socketName is that of the socket of a keeper with that pid.
func socketName(key string, pid int) string { return fmt.Sprintf("%s-%d.sock", key, pid) }
