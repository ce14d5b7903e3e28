package vmm

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/boxlite-oci/boxlite/internal/trace"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/qmp"
	"github.com/boxlite-oci/boxlite/libvm/template"
)

// launch is a VM being started.
type launch struct {
	parts *parts.Parts
	cfg   Config
	files Files
	from  *template.Template // nil for a VM that boots
	steps *trace.Recorder
	log   *slog.Logger

	vm        *VM
	qmp       *net.UnixConn // until the VM's client has it
	console   *net.UnixConn // until the VM's console has it
	virtiofsd *os.File      // the listening socket for it
	inherited []*os.File    // by QEMU, in the order of its descriptors
	lent      []*os.File    // the children's ends; closed here once they run, so that their end shows
}

// start starts QEMU and virtiofsd beside it. The VM boots, or with from is
// made a copy of a template, and has no share yet. A copy for standby stands still.
// start must be called before the monitor leaves the host's file systems. The
// caller closes the VM. One that could not be started is closed, and returned for
// what its processes said.
func start(p *parts.Parts, cfg Config, files Files, from *template.Template, steps *trace.Recorder, log *slog.Logger) (*VM, error) {
	l := &launch{parts: p, cfg: cfg, files: files, from: from, steps: steps, log: log, vm: &VM{log: log, accel: cfg.accel}}
	err := l.run()
	if err != nil {
		l.abandon()
	}
	return l.vm, err
}

func (l *launch) run() error {
	for _, step := range []func() error{l.connect, l.tellRate, l.spawn, l.greet, l.settle} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// abandon closes what a launch that has failed has opened.
func (l *launch) abandon() {
	fdpass.CloseAll(l.lent)
	for _, conn := range []*net.UnixConn{l.qmp, l.console} {
		if conn != nil {
			_ = conn.Close()
		}
	}
	l.vm.Close()
}

// connect makes the sockets to QEMU and virtiofsd.
func (l *launch) connect() error {
	listener, client, err := shareSocket()
	if err != nil {
		return fmt.Errorf("socket for virtiofsd: %w", err)
	}
	l.virtiofsd, l.inherited, l.lent = listener, []*os.File{client}, []*os.File{listener, client}
	for _, mine := range []**net.UnixConn{&l.vm.Control, &l.qmp, &l.console} {
		if err := l.pair(mine); err != nil {
			return err
		}
	}
	l.cfg.incoming = l.from != nil
	if l.files.Scratch != nil {
		l.inherited, l.cfg.scratch = append(l.inherited, l.files.Scratch), true
	}
	if l.cfg.standby {
		return l.pair(&l.vm.spare.qmp)
	}
	return nil
}

// pair makes a connection to QEMU.
func (l *launch) pair(mine **net.UnixConn) error {
	conn, theirs, err := fdpass.Socketpair()
	if err != nil {
		return fault.Wrap("sockets to QEMU", err)
	}
	*mine, l.inherited, l.lent = conn, append(l.inherited, theirs), append(l.lent, theirs)
	return nil
}

// spawn starts both processes.
func (l *launch) spawn() error {
	defer l.steps.Begin("start QEMU and virtiofsd")()
	args := l.cfg.args()
	l.log.Debug("starting QEMU", "command", quoteCommand(l.parts.QEMU, args))
	room := &cell{
		dir: l.files.Root, program: l.parts.QEMU, images: []string{l.cfg.kernel, l.cfg.initramfs}, memoryMiB: l.cfg.memoryMiB,
		kvm: l.cfg.accel == accel.KVM, log: l.log,
	}
	if l.cfg.firmware != "" {
		room.images = append(room.images, l.cfg.firmware)
	}
	var err error
	if room.who, err = qemuIdentity(); err != nil {
		return fault.Wrap("look for a user for QEMU", err)
	}
	confineQEMU := func(attr *syscall.SysProcAttr) (err error) {
		if l.cfg.accel == accel.TCG {
			if err := runAsBatch(); err != nil { // slower beside others, no more
				l.log.Debug("QEMU keeps its scheduling policy", "error", err)
			}
		}
		l.vm.memory, err = room.enter(attr)
		return err
	}
	if l.vm.qemu, err = startProcess("QEMU", l.parts.QEMU, args, confineQEMU, l.log, l.inherited...); err != nil {
		return err
	}
	if l.files.Share != "" {
		if l.vm.virtiofsd, err = startVirtiofsd(l.parts.Virtiofsd, l.files, l.log, l.virtiofsd); err != nil {
			return err
		}
		l.vm.dialect = l.parts.Virtiofsd.Dialect
	}
	fdpass.CloseAll(l.lent)
	l.lent = nil
	return nil
}

// greet opens the VM's console and waits for QEMU's first word, while the memory
// of the template is copied.
func (l *launch) greet() error {
	l.vm.console, l.console = readConsole(l.console, l.files.Console), nil
	copied := make(chan error, 1)
	if l.from == nil {
		copied <- nil
	} else {
		go func() {
			defer l.steps.Begin("copy the template's memory")()
			copied <- l.from.CopyMemory(l.vm.memory)
		}()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answered, began := l.steps.Begin("await QEMU's first word"), time.Now()
	client, err := qmp.New(ctx, l.qmp)
	l.qmp = nil // it is the client's, or closed
	answered()
	l.vm.cameUp = time.Since(began)
	copyErr := <-copied // whatever has become of QEMU: the file is closed when the launch is
	if err != nil {
		return fmt.Errorf("QEMU did not come up: %w%s", err, l.vm.LastWords())
	}
	l.vm.qmp = client
	return copyErr
}

// settle empties QEMU's root while QEMU loads the state of the template, and only
// then has a saved VM go on.
func (l *launch) settle() error {
	emptied := make(chan error, 1)
	go func() {
		defer l.steps.Begin("empty QEMU's root")()
		emptied <- l.vm.qemu.onThread(emptyRoot)
	}()
	var err error
	if l.from != nil {
		loaded := l.steps.Begin("load the VM's state")
		err = l.vm.load(l.from.State)
		loaded()
	}
	err = cmp.Or(err, <-emptied)
	if err == nil && l.from != nil && !l.cfg.standby {
		err = l.vm.proceed() // it was saved while it stood still
	}
	return err
}
