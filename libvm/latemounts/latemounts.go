// Package latemounts shows a container the mounts that the host makes after create,
// below a bind with the propagation slave, and takes them away with the host's.
//
// The kernel could propagate them into virtiofsd's mount namespace by itself. Then
// nobody would give them the attributes of the bind, and a mount that a guest has
// looked at could not be unmounted on the host (EBUSY). So a process of its own, the
// mirror, has a copy of the bind that the kernel propagates to, its source, and that
// nobody uses. It carries what comes and goes there over to a second copy, its share,
// which is a peer of virtiofsd's.
//
//	host's mount ──slave──► source ──mirror, with nodev and ro──► share ──peer──► virtiofsd
package latemounts

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
	"github.com/boxlite-oci/boxlite/libvm/self"
)

// Command is boxlite's hidden command that calls Run.
const Command = "late-mounts"

// config is what Start tells Run. The mounts are Run's descriptors from firstMount on,
// a source and a share for each bind.
type config struct {
	Binds []bind `json:"binds"`
}

type bind struct {
	Name     string `json:"name"`     // the host's path of it
	Share    string `json:"share"`    // its place in the share
	ReadOnly bool   `json:"readOnly"` // and so is what comes later
}

const firstMount = 4 // after the socket

// event is what Run tells Start: that it is ready, if it is empty, and later what has
// gone and what could not be mirrored.
type event struct {
	Gone  []string `json:"gone,omitempty"` // paths in the share
	Error string   `json:"error,omitempty"`
}

// Mirror is the caller's end of the mirror.
type Mirror struct{ conn *net.UnixConn }

// Start starts the mirror in a mount namespace of its own. The mirror ends with the
// calling process. The caller goes on to Follow. Start closes the files of following.
func Start(following []rootfs.Following) (*Mirror, error) {
	cfg, files := config{}, []*os.File{}
	for _, f := range following {
		cfg.Binds = append(cfg.Binds, bind{f.Bind.Source, f.Bind.Name, f.ReadOnly || f.ReadOnlyBelow})
		files = append(files, f.Source, f.Share)
	}
	defer fdpass.CloseAll(files)
	cmd, err := self.Command(nil, nil, Command)
	if err != nil {
		return nil, err
	}
	conn, peer, err := fdpass.Socketpair()
	if err != nil {
		return nil, err
	}
	cmd.Dir, cmd.ExtraFiles = "/", append([]*os.File{peer}, files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	err = fault.Wrap("start the mirror of mounts", cmd.Start())
	_ = peer.Close() // the mirror has its own
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go func() { _ = cmd.Wait() }() // its end shows on the socket
	if err := guestproto.WriteFrame(conn, cfg); err != nil {
		return nil, errors.Join(fault.Wrap("mirror of mounts", err), conn.Close())
	}
	return &Mirror{conn}, nil
}

// Follow waits until the mirror follows the host's mounts. What it cannot mirror from then
// on is logged. The function gone is called with the places in the share where mounts have
// gone: the guest may still have them in use.
func (m *Mirror) Follow(gone func(paths []string), log *slog.Logger) error {
	var ready event
	err := guestproto.ReadFrame(m.conn, guestproto.MaxReply, &ready)
	if err == nil && ready.Error != "" {
		err = errors.New(ready.Error)
	}
	if err != nil {
		return fault.Wrap("mirror of mounts", err)
	}
	go attend(m.conn, gone, log)
	return nil
}

// attend hears what the mirror says until it ends. The connection stays open until then,
// as its end is the mirror's.
func attend(conn *net.UnixConn, gone func([]string), log *slog.Logger) {
	defer conn.Close()
	for {
		var e event
		if err := guestproto.ReadFrame(conn, guestproto.MaxReply, &e); err != nil {
			log.Debug("the mirror of mounts has ended", "error", err)
			return
		}
		if e.Error != "" {
			log.Warn("a mount that the host has made or taken away does not show as on the host", "error", e.Error)
		}
		if len(e.Gone) > 0 {
			gone(e.Gone)
		}
	}
}
