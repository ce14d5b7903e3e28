package vmm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/template"
)

// keeper is the process that has a standby VM.
type keeper struct {
	sync *net.UnixConn // to Standby
	log  *slog.Logger
	cfg  keeperConfig
	dir  string // of the sockets
	pid  int    // as the host sees it
	vm   *VM
	key  string // of the VM's template
}

// RunKeeper does the work of a keeper, the process that Standby starts for each VM.
// It returns when the VM has ended, with the status that the process shall exit
// with.
func RunKeeper(sync *net.UnixConn, log *slog.Logger) int {
	k := &keeper{sync: sync, log: log}
	err := k.prepare()
	if k.vm != nil {
		defer k.vm.Close()
	}
	var monitor *net.UnixConn
	if err == nil {
		monitor, err = k.awaitMonitor()
	}
	if err != nil {
		k.tell(keeperEvent{Event: keeperFailed, Error: fault.Quiet(err.Error())})
		return 1
	}
	if monitor == nil {
		return 0
	}
	defer monitor.Close()
	k.tell(keeperEvent{Event: keeperTaken})
	_ = sync.Close()
	if err := k.vm.handOver(monitor, Handover{Keeper: k.pid}); err != nil {
		log.Debug("hand the VM over", "error", err)
		return 1
	}
	k.attend(monitor)
	return 0
}

// tell writes to Standby, which may have gone.
func (k *keeper) tell(ev keeperEvent) { _ = guestproto.WriteFrame(k.sync, ev) }

// prepare has a VM stand by.
func (k *keeper) prepare() (err error) {
	if err := guestproto.ReadFrame(k.sync, guestproto.MaxRequest, &k.cfg); err != nil {
		return err
	}
	k.dir = filepath.Join(k.cfg.TemplateDir, standbyDir)
	if err := os.Mkdir(k.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if k.pid, err = hostPid(); err != nil {
		return err
	}
	f := &Factory{Parts: k.cfg.Parts, Accel: k.cfg.Accel, TemplateDir: k.cfg.TemplateDir, Log: k.log}
	k.vm, k.key, err = f.startStandby(k.cfg.Shape, stageOf(k.dir, k.pid), k.cfg.Example)
	return err
}

// awaitMonitor offers the VM to the first monitor that wants one. It returns nil
// when Standby no longer wants the VM. The caller closes the connection.
func (k *keeper) awaitMonitor() (*net.UnixConn, error) {
	o, err := openOffer(k.dir, socketName(k.key, k.pid))
	if err != nil {
		return nil, err
	}
	defer o.close()
	k.tell(keeperEvent{Event: keeperReady, Key: k.key})
	unwanted := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, k.sync)
		close(unwanted)
	}()
	select {
	case monitor := <-o.accepted:
		return monitor, nil
	case <-unwanted:
		return nil, nil
	case <-k.vm.qemu.done:
		return nil, errors.New("QEMU ended" + k.vm.qemu.lastWords(reapGrace))
	}
}

// attend waits for QEMU's end, which the monitor may ask for, and tells the monitor
// of it.
func (k *keeper) attend(monitor *net.UnixConn) {
	go func() {
		_, _ = io.Copy(io.Discard, monitor)
		k.vm.qemu.kill()
	}()
	<-k.vm.qemu.done
	_ = guestproto.WriteFrame(monitor, vmEnd{Status: k.vm.qemu.status, Stderr: k.vm.qemu.tail.String()}) // it may have gone
}

// startStandby starts a VM from a template, has it rehearse and stops its
// processors. The VM's share is the directory stage meanwhile.
func (f *Factory) startStandby(shape plan.Shape, stage string, example *specs.Spec) (v *VM, key string, err error) {
	starter, err := f.starter(shape)
	if err != nil {
		return nil, "", err
	}
	if starter.Config.accel == accel.TCG {
		DisableHugePages(f.Log)
	}
	id, err := starter.identity()
	if err != nil {
		return nil, "", err
	}
	store, err := template.Open(f.TemplateDir, false)
	if err != nil {
		return nil, "", err
	}
	defer store.Close()
	t, err := store.Load(id)
	if err != nil {
		return nil, "", err
	}
	defer t.Close()
	defer os.RemoveAll(stage)
	if err := makeStage(stage); err != nil {
		return nil, "", err
	}
	starter.Config.standby, starter.Files.Share, starter.Files.Nodes = true, stage, plan.MakesNodes(example)
	v, err = start(starter.Parts, starter.Config, starter.Files, t, nil, f.Log)
	if err != nil {
		return nil, "", err
	}
	v.letGoOfMemory()
	if err := v.rehearse(stage, example); err != nil {
		v.Close()
		return nil, "", fmt.Errorf("%w (guest console: %q)", err, starter.Files.Console)
	}
	return v, t.Key, nil
}

// handOver sends the VM's connections to a monitor. The keeper then closes its own
// copies, as only the monitor shall have them.
func (v *VM) handOver(monitor *net.UnixConn, h Handover) error {
	var files []*os.File
	defer func() { fdpass.CloseAll(files) }()
	for _, conn := range []*net.UnixConn{v.Control, v.spare.qmp, v.console.conn} {
		f, err := conn.File()
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if err := fdpass.Send(monitor, append(files, v.spare.virtiofsd)...); err != nil {
		return err
	}
	if err := guestproto.WriteFrame(monitor, h); err != nil {
		return err
	}
	v.spare.close()
	return errors.Join(v.Control.Close(), v.console.conn.Close(), v.qmp.Close())
}

// hostPid is the calling process's pid where /proc is from.
func hostPid() (int, error) {
	link, err := os.Readlink("/proc/self")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(link)
}

// offer is a socket at which a monitor can get a standby VM.
type offer struct {
	dir      *os.File
	name     string
	listener *net.UnixListener
	accepted chan *net.UnixConn // by the one that gets the VM
}

// openOffer opens the socket in dir. The caller closes the offer.
func openOffer(dir, name string) (*offer, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	o := &offer{dir: d, name: name, accepted: make(chan *net.UnixConn, 1)}
	if o.listener, err = fdpass.Listen(d, name); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	go o.accept()
	return o, nil
}

// accept returns the first connection from a process of the same user.
func (o *offer) accept() {
	for {
		conn, err := o.listener.AcceptUnix()
		if err != nil {
			return
		}
		if fdpass.CheckPeer(conn) == nil {
			o.accepted <- conn
			return
		}
		_ = conn.Close()
	}
}

// close removes the socket. A connection that nobody has accepted is closed, so that
// its other end sees that the VM has gone.
func (o *offer) close() {
	_ = os.Remove(fdpass.Path(o.dir, o.name))
	_ = o.listener.Close()
	_ = o.dir.Close()
}
