package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/qmp"
)

// adopt takes a standby VM that was started from the template, if there is one.
// Whatever is wrong with it, the container gets another VM.
func (s *Starter) adopt(templates, key string) (*VM, *Handover) {
	defer s.Steps.Begin("look for a standby VM")()
	dir, err := os.Open(filepath.Join(templates, standbyDir))
	if err != nil {
		return nil, nil // nobody ever had one here
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		s.Log.Debug("look for a standby VM", "error", err)
		return nil, nil
	}
	for _, name := range names {
		if !strings.HasPrefix(name, key+"-") {
			continue
		}
		v, taken, err := s.take(dir, name)
		if err == nil {
			return v, taken
		}
		s.Log.Debug("a standby VM is of no use", "socket", name, "error", err)
	}
	return nil, nil
}

// takeTimeout bounds how long a keeper takes to answer.
const takeTimeout = 10 * time.Second

// take gets the VM of a keeper's socket, and starts virtiofsd for it.
func (s *Starter) take(dir *os.File, name string) (*VM, *Handover, error) {
	keeper, err := dialKeeper(dir, name)
	if err != nil {
		return nil, nil, err
	}
	taken, conns, share, err := receiveVM(keeper)
	if err != nil {
		return nil, nil, errors.Join(err, keeper.Close()) // which ends QEMU
	}
	v := &VM{log: s.Log, accel: s.Config.accel, Control: conns[0], console: readConsole(conns[2], s.Files.Console), qemu: adoptedQEMU(keeper, s.Log)}
	if err := s.complete(v, conns[1], share); err != nil {
		v.Close()
		return nil, nil, err
	}
	return v, taken, nil
}

// dialKeeper connects to a keeper's socket. It removes one whose keeper was killed, and
// what had it stand by.
func dialKeeper(dir *os.File, name string) (*net.UnixConn, error) {
	keeper, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: fdpass.Path(dir, name), Net: "unix"})
	if errors.Is(err, unix.ECONNREFUSED) {
		err = errors.Join(err, os.Remove(fdpass.Path(dir, name)))
	}
	if err != nil {
		return nil, err
	}
	if err := fdpass.CheckPeer(keeper); err != nil {
		return nil, errors.Join(err, keeper.Close())
	}
	return keeper, nil
}

// receiveVM is the other side of handOver: the control port, QMP and the console, and
// the socket at which QEMU awaits virtiofsd. The caller closes them; with an error there
// are none.
func receiveVM(keeper *net.UnixConn) (taken *Handover, conns [3]*net.UnixConn, share *os.File, err error) {
	if err := keeper.SetDeadline(time.Now().Add(takeTimeout)); err != nil {
		return nil, conns, nil, err
	}
	files, err := fdpass.Receive(keeper)
	if err != nil {
		return nil, conns, nil, err
	}
	defer func() {
		if err != nil {
			fdpass.CloseAll(files)
		}
	}()
	if len(files) != len(conns)+1 {
		return nil, conns, nil, fmt.Errorf("%d descriptors", len(files))
	}
	taken = new(Handover)
	if err := errors.Join(guestproto.ReadFrame(keeper, maxVMEnd, taken), keeper.SetDeadline(time.Time{})); err != nil {
		return nil, conns, nil, err
	}
	for i := range conns {
		conn, err := net.FileConn(files[i])
		if err != nil {
			for _, c := range conns[:i] {
				_ = c.Close()
			}
			return nil, conns, nil, err
		}
		conns[i] = conn.(*net.UnixConn)
	}
	fdpass.CloseAll(files[:len(conns)]) // the connections have their own
	return taken, conns, files[len(conns)], nil
}

// complete gives a VM that was taken its virtiofsd and has it go on. It closes share,
// and conn where the VM does not have it.
func (s *Starter) complete(v *VM, conn *net.UnixConn, share *os.File) (err error) {
	v.dialect = s.Parts.Virtiofsd.Dialect
	v.virtiofsd, err = startVirtiofsd(s.Parts.Virtiofsd, s.Files, s.Log, share)
	_ = share.Close() // virtiofsd has its own
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), takeTimeout)
	defer cancel()
	if v.qmp, err = qmp.New(ctx, conn); err != nil {
		return err
	}
	return v.proceed()
}

// adoptedQEMU is the QEMU at the other end of a keeper's connection.
func adoptedQEMU(keeper *net.UnixConn, log *slog.Logger) *process {
	p := &process{name: "QEMU", done: make(chan struct{}), tail: &fault.Tail{Limit: 4 << 10}}
	p.end = func() { _ = keeper.CloseWrite() }
	go func() {
		end := vmEnd{Status: "its keeper ended"}
		_ = guestproto.ReadFrame(keeper, maxVMEnd, &end) // QEMU ends with its keeper
		_, _ = p.tail.Write([]byte(end.Stderr))
		p.status = end.Status
		p.report(log)
		close(p.done)
		_ = keeper.Close()
	}()
	return p
}
