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
func (s *Starter) take(dir *os.File, name string) (_ *VM, _ *Handover, err error) {
	keeper, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: fdpass.Path(dir, name), Net: "unix"})
	if errors.Is(err, unix.ECONNREFUSED) { // its keeper was killed, and what had it stand by
		err = errors.Join(err, os.Remove(fdpass.Path(dir, name)))
	}
	if err != nil {
		return nil, nil, err
	}
	v := &VM{log: s.Log}
	defer func() {
		if err != nil {
			_ = keeper.Close() // ends QEMU
			v.Close()
		}
	}()
	if err := errors.Join(fdpass.CheckPeer(keeper), keeper.SetDeadline(time.Now().Add(takeTimeout))); err != nil {
		return nil, nil, err
	}
	files, err := fdpass.Receive(keeper)
	defer func() { fdpass.CloseAll(files) }()
	if err != nil {
		return nil, nil, err
	}
	if len(files) != 4 {
		return nil, nil, fmt.Errorf("%d descriptors", len(files))
	}
	taken := new(Handover)
	if err := guestproto.ReadFrame(keeper, maxVMEnd, taken); err != nil {
		return nil, nil, err
	}
	if err := keeper.SetDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	var conns [3]*net.UnixConn
	for i := range conns {
		conn, err := net.FileConn(files[i])
		if err != nil {
			return nil, nil, err
		}
		conns[i] = conn.(*net.UnixConn)
	}
	v.Control, v.console, v.qemu = conns[0], readConsole(conns[2], s.Files.Console), adoptedQEMU(keeper, s.Log)
	if v.virtiofsd, err = startVirtiofsd(s.Parts.Virtiofsd, s.Files, s.Log, files[3]); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), takeTimeout)
	defer cancel()
	if v.qmp, err = qmp.New(ctx, conns[1]); err != nil {
		return nil, nil, err
	}
	return v, taken, v.proceed()
}

// adoptedQEMU is the QEMU at the other end of a keeper's connection.
func adoptedQEMU(keeper *net.UnixConn, log *slog.Logger) *process {
	p := &process{name: "QEMU", done: make(chan struct{}), tail: &fault.Tail{Limit: 4 << 10}}
	p.kill = func() { _ = keeper.CloseWrite() }
	go func() {
		end := vmEnd{Status: "its keeper ended"}
		_ = guestproto.ReadFrame(keeper, maxVMEnd, &end) // QEMU ends with its keeper
		_, _ = p.tail.Write([]byte(end.Stderr))
		p.status = end.Status
		log.Debug("process ended", "name", p.name, "status", p.status, "stderr", end.Stderr)
		close(p.done)
		_ = keeper.Close()
	}()
	return p
}
