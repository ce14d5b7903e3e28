package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/qmp"
)

// bareVM names the rows of a VM that no runtime has started: QEMU and virtiofsd with boxlite's own arguments, run by hand.
const bareVM = "bare VM"

// commands are the command lines that boxlite gives QEMU and virtiofsd for an ordinary container.
type commands struct{ qemu, virtiofsd []string }

// boxliteCommands reads them off a container that is made, with those flags, and removed for it.
func boxliteCommands(h *host, flags ...string) (c commands, err error) {
	id := "bench-commands" + strings.Join(flags, "")
	bundle, err := h.bundle(id, "sleep", "3600")
	if err != nil {
		return c, err
	}
	s := h.subject(cold)
	s.flags = append(slices.Clone(s.flags), flags...)
	if err := s.detached("create", "--bundle", bundle, id); err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, s.detached("delete", "--force", id)) }()
	pids, err := h.pids(id)
	if err != nil {
		return c, err
	}
	for _, pid := range pids {
		raw, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err != nil {
			return c, err
		}
		args := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
		switch name := filepath.Base(args[0]); {
		case strings.HasPrefix(name, "qemu-system"):
			c.qemu = args
		case name == "virtiofsd" && c.virtiofsd == nil: // its second process says the same
			c.virtiofsd = args
		}
	}
	if c.qemu == nil || c.virtiofsd == nil {
		return c, errors.New("no QEMU or no virtiofsd among the processes of a container")
	}
	return c, nil
}

// replace gives the argument after each occurrence of flag to f.
func replace(args []string, flag string, f func(value string) string) []string {
	args = slices.Clone(args)
	for i := range args[:len(args)-1] {
		if args[i] == flag {
			args[i+1] = f(args[i+1])
		}
	}
	return args
}

// memoryMiB reads the size from QEMU's command line.
func (c commands) memoryMiB() (n int64, err error) {
	i := slices.Index(c.qemu, "-m")
	if i < 0 {
		return 0, errors.New("QEMU without -m")
	}
	_, err = fmt.Sscanf(c.qemu[i+1], "%dM", &n)
	return n, err
}

// bare is a VM run by hand.
type bare struct {
	dir             string
	memory          *os.File
	control         net.Conn
	session         *yamux.Session // over control, once it is used
	qmp             *qmp.Client
	qemu, virtiofsd *exec.Cmd
	console         *console
}

// startBare runs c's processes with share as the share's directory. What the guest writes to its console goes to watch
// too, unless that is nil. The VM is to be ended with stop.
func startBare(c commands, share string, watch io.Writer) (b *bare, err error) {
	b = &bare{console: new(console)}
	if b.dir, err = os.MkdirTemp("/run", "bare"); err != nil { // a tmpfs, as boxlite keeps memory in
		return b, err
	}
	size, err := c.memoryMiB()
	if err != nil {
		return b, err
	}
	memory := filepath.Join(b.dir, "memory")
	if b.memory, err = os.Create(memory); err != nil {
		return b, err
	}
	if err := b.memory.Truncate(size << 20); err != nil {
		return b, err
	}
	args := replace(c.qemu, "-object", func(v string) string {
		return strings.Replace(v, "mem-path=/memory,", "mem-path="+memory+",", 1)
	})
	listener, client, err := b.shareSocket()
	if err != nil {
		return b, err
	}
	files := []*os.File{client}
	var conns []*net.UnixConn
	for range 3 {
		conn, theirs, err := fdpass.Socketpair()
		if err != nil {
			return b, err
		}
		conns, files = append(conns, conn), append(files, theirs)
	}
	b.control = conns[0]
	guest := io.Writer(b.console)
	if watch != nil {
		guest = io.MultiWriter(b.console, watch)
	}
	go func() { _, _ = io.Copy(guest, conns[2]) }()
	daemon := replace(c.virtiofsd, "--shared-dir", func(string) string { return share }) // the Rust one
	daemon = replace(daemon, "-o", func(v string) string {                               // the C one
		if strings.HasPrefix(v, "source=") {
			return "source=" + share
		}
		return v
	})
	if b.virtiofsd, err = b.start(daemon, listener); err != nil {
		return b, err
	}
	if b.qemu, err = b.start(args, files...); err != nil {
		return b, err
	}
	for _, f := range append(files, listener) {
		_ = f.Close() // the children's
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b.qmp, err = qmp.New(ctx, conns[1])
	return b, err
}

// shareSocket is a listening socket for virtiofsd and a client of it for QEMU.
func (b *bare) shareSocket() (listener, client *os.File, err error) {
	address := &net.UnixAddr{Name: filepath.Join(b.dir, "share"), Net: "unix"}
	l, err := net.ListenUnix("unix", address)
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if listener, err = l.File(); err != nil {
		return nil, nil, err
	}
	conn, err := net.DialUnix("unix", nil, address)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	client, err = conn.File()
	return listener, client, err
}

func (b *bare) start(args []string, files ...*os.File) (*exec.Cmd, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = b.console, b.console
	return cmd, cmd.Start()
}

// stop ends the VM and removes what it had.
func (b *bare) stop() error {
	for _, cmd := range []*exec.Cmd{b.qemu, b.virtiofsd} {
		if cmd != nil && cmd.Process != nil {
			_ = cmd.Process.Kill() // it may have ended by itself
			_ = cmd.Wait()
		}
	}
	if b.memory != nil {
		_ = b.memory.Close() // nothing in it is wanted
	}
	return os.RemoveAll(b.dir)
}

// plugShare is the hotplug that boxlite does.
func (b *bare) plugShare(ctx context.Context) error {
	return b.qmp.Execute(ctx, "device_add", map[string]any{
		"driver": "vhost-user-fs-pci", "id": "share", "chardev": "share", "queue-size": 1024, "tag": "boxlite", "bus": "port0",
	}, nil)
}

// awaitCompletion waits for the end of an incoming migration.
func (b *bare) awaitCompletion(ctx context.Context) error {
	for {
		select {
		case ev, ok := <-b.qmp.Events():
			if !ok {
				return b.qmp.Err()
			}
			var progress struct {
				Status string `json:"status"`
			}
			if ev.Name == "MIGRATION" && json.Unmarshal(ev.Data, &progress) == nil && progress.Status == "completed" {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
