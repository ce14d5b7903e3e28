// Package vmm makes and ends virtual machines: QEMU, virtiofsd beside it, and the
// sockets to both. It knows nothing of containers, nor of who owns a VM.
//
// A VM has an Origin (origin.go), which is one of these:
//
//   - It stood by (origin_standby.go).
//   - It is a copy of a template (origin_template.go).
//   - It has booted.
//
// qemu.go makes QEMU's command line. cell.go and process.go decide what QEMU may
// see and do. hotplug.go plugs devices into a running VM.
package vmm

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/guesttext"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/qmp"
)

var (
	// ErrLost is matched by the error of a call during which QEMU or virtiofsd
	// ended.
	ErrLost = errors.New("the virtual machine has ended")
	// ErrNoAnswer is matched by the error of a call whose answer the guest did not
	// give in time.
	ErrNoAnswer = errors.New("no answer")
)

// VM is a running virtual machine: virtiofsd, QEMU and the sockets to them.
type VM struct {
	Control *net.UnixConn // the guest's control port
	console *guestConsole
	qmp     *qmp.Client
	memory  *os.File // the guest's memory; closed once nobody copies it any more
	log     *slog.Logger

	virtiofsd *process
	qemu      *process
	// dialect is virtiofsd's.
	dialect parts.Dialect

	accel    accel.Accel
	cameUp   time.Duration // what QEMU took from its start to its first word
	spare    spareEnds
	grownMiB int // memory that GrowMemory has plugged in
}

// Files are the directories and files that the caller gives a VM.
type Files struct {
	Share   string // for virtiofsd; empty for a VM without a share
	Nodes   bool   // device nodes may be made in the share
	Root    string // an empty directory for QEMU's own use
	Console io.Writer
	Scratch *os.File // the raw image of a scratch disk; nil for none
}

// spareEnds are a standby VM's ends for its container: a second connection to
// QEMU, which nothing was said on, and the socket at which QEMU awaits virtiofsd.
type spareEnds struct {
	qmp       *net.UnixConn
	virtiofsd *os.File
}

func (s *spareEnds) close() {
	if s.qmp != nil {
		_ = s.qmp.Close()
	}
	if s.virtiofsd != nil {
		_ = s.virtiofsd.Close()
	}
}

// The least and the most that BootTimeout is.
const (
	minBootTimeout = 20 * time.Second
	maxBootTimeout = 120 * time.Second
)

// bootsPerStart is how many times QEMU's own start a guest under KVM may take. A guest
// takes three times that, on a processor as under a KVM that is itself emulated: 0.05 s
// and 0.15 s, or 3 s and 5 to 10 s (e2e/kvm).
const bootsPerStart = 40

// BootTimeout bounds the wait for the VM's guest to come up. Under TCG many VMs may be
// booting on few processors. Under KVM the bound follows what the machine can do, by
// the time that QEMU took to start: a guest that takes much longer never comes.
func (v *VM) BootTimeout() time.Duration {
	if v.accel != accel.KVM {
		return maxBootTimeout
	}
	return min(max(bootsPerStart*v.cameUp, minBootTimeout), maxBootTimeout)
}

// Lost is closed when QEMU or virtiofsd has ended.
func (v *VM) Lost() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		select {
		case <-v.qemu.done:
		case <-v.virtiofsd.done:
		}
		close(gone)
	}()
	return gone
}

// Kill ends QEMU and virtiofsd at once, and returns when both are gone. It may be
// called again, and on a VM that was only started in part.
func (v *VM) Kill() {
	processes := slices.DeleteFunc([]*process{v.qemu, v.virtiofsd}, func(p *process) bool { return p == nil })
	for _, p := range processes {
		p.kill()
	}
	for _, p := range processes {
		<-p.done
	}
	v.letGoOfMemory()
	v.spare.close()
}

// Close ends QEMU and virtiofsd, and lets go of everything: the sockets, the
// memory, and the goroutine that copies the console. The VM must not be used
// afterwards. Close may be called again, and on a VM that was only started in part.
func (v *VM) Close() {
	v.Kill()
	if v.Control != nil {
		_ = v.Control.Close()
	}
	if v.qmp != nil {
		_ = v.qmp.Close()
	}
	if v.console != nil {
		v.console.close()
	}
}

// StuckTasks asks the guest's kernel what its tasks wait for, as a text to append
// to an error.
func (v *VM) StuckTasks() string { return v.console.stuckTasks() }

// LastWords says how QEMU and virtiofsd have ended, as a text to append to an
// error. It says nothing of a process that still runs.
func (v *VM) LastWords() string {
	ofVirtiofsd := v.virtiofsd.lastWords(reapGrace)
	grace := reapGrace
	if v.virtiofsd.endedWell() {
		grace = exitGrace
	}
	return v.qemu.lastWords(grace) + v.shutdownCause() + ofVirtiofsd
}

// shutdownCause tells of a QEMU that ended well what ended it, as a text to append to
// an error. A guest that resets itself ends it so, as one whose processor has met a
// third fault in a row.
func (v *VM) shutdownCause() string {
	if !v.qemu.endedWell() || v.qmp == nil {
		return ""
	}
	select {
	case <-v.qmp.Done():
	case <-time.After(reapGrace):
	}
	cause := v.qmp.ShutdownCause()
	if cause == "" {
		return ""
	}
	return " (shutdown: " + guesttext.Harmless(cause) + ")"
}

// letGoOfMemory has the VM's memory end with QEMU and virtiofsd.
func (v *VM) letGoOfMemory() {
	if v.memory != nil {
		_ = v.memory.Close() // nothing was written that could be lost
		v.memory = nil
	}
}
