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

// RunKeeper is the life of the keeper that Standby starts. It returns the status
// that the process shall exit with.
func RunKeeper(sync *net.UnixConn, log *slog.Logger) int {
	tell := func(ev keeperEvent) { _ = guestproto.WriteFrame(sync, ev) } // it may have gone
	fail := func(err error) int {
		tell(keeperEvent{Event: keeperFailed, Error: fault.Quiet(err.Error())})
		return 1
	}
	var cfg keeperConfig
	if err := guestproto.ReadFrame(sync, guestproto.MaxRequest, &cfg); err != nil {
		return fail(err)
	}
	f := &Factory{Parts: cfg.Parts, Accel: cfg.Accel, TemplateDir: cfg.TemplateDir, Log: log}
	dir := filepath.Join(cfg.TemplateDir, standbyDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(err)
	}
	self, err := hostPid()
	if err != nil {
		return fail(err)
	}
	v, key, err := f.startStandby(cfg.Shape, stageOf(dir, self), cfg.Example)
	if err != nil {
		return fail(err)
	}
	defer v.Close()
	counter, err := openCounter(dir, socketName(key, self))
	if err != nil {
		return fail(err)
	}
	defer counter.close()
	tell(keeperEvent{Event: keeperReady, Key: key})
	unwanted := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, sync)
		close(unwanted)
	}()
	var monitor *net.UnixConn
	select {
	case monitor = <-counter.served:
	case <-unwanted:
		return 0
	case <-v.qemu.done:
		return fail(errors.New("QEMU ended" + v.qemu.lastWords()))
	}
	counter.close()
	tell(keeperEvent{Event: keeperTaken})
	_ = sync.Close()
	if err := v.handOver(monitor, Handover{Keeper: self}); err != nil {
		log.Debug("hand the VM over", "error", err)
		return 1
	}
	go func() {
		_, _ = io.Copy(io.Discard, monitor)
		v.qemu.kill()
	}()
	<-v.qemu.done
	_ = guestproto.WriteFrame(monitor, vmEnd{Status: v.qemu.status, Stderr: v.qemu.tail.String()}) // it may have gone
	_ = monitor.Close()
	return 0
}

// startStandby starts a VM from a template, has it rehearse and leaves it standing
// still. The directory stage is its share meanwhile.
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

// handOver gives the VM to a monitor, and everything away that only the monitor
// shall have.
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

// counter is where a keeper hands its VM out.
type counter struct {
	dir      *os.File
	name     string
	listener *net.UnixListener
	served   chan *net.UnixConn // the one that gets it
}

// openCounter opens a socket in dir.
func openCounter(dir, name string) (*counter, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	c := &counter{dir: d, name: name, served: make(chan *net.UnixConn, 1)}
	if c.listener, err = fdpass.Listen(d, name); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	go func() {
		for {
			conn, err := c.listener.AcceptUnix()
			if err != nil {
				return
			}
			if fdpass.CheckPeer(conn) == nil {
				c.served <- conn
				return
			}
			_ = conn.Close()
		}
	}()
	return c, nil
}

// close has nobody come any more. Those that have come in vain hear it. It may be
// called again.
func (c *counter) close() {
	_ = os.Remove(fdpass.Path(c.dir, c.name))
	_ = c.listener.Close()
	_ = c.dir.Close()
}
