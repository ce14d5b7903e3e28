package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/template"
)

// The floors: what remains of a start without a runtime around it. The same QEMU with the same arguments, virtiofsd, kernel,
// initramfs and template, without confinement, namespaces, cgroups, hooks, container.
const (
	bootFloor    = "boot to guestinit's answer"
	restoreFloor = "restore, plug and mount the share"
)

// floorLimit is far more than a floor takes on the slowest machine.
const floorLimit = 2 * time.Minute

func floors(h *host, n repetitions, r *result) error {
	saved, err := savedVM(h)
	if err != nil {
		return err
	}
	for i := range n.floor + 1 {
		for _, f := range []struct {
			what string
			do   func() error
		}{
			{bootFloor, func() error { return bootBare(h) }},
			{restoreFloor, func() error { return restoreBare(h, saved) }},
		} {
			began := time.Now()
			if err := f.do(); err != nil {
				return fmt.Errorf("%s: %w", f.what, err)
			}
			if i > 0 {
				r.add(f.what, bareVM, seconds, time.Since(began).Seconds())
			}
		}
	}
	return nil
}

// storedVM is a template's place and name.
type storedVM struct {
	dir string
	id  template.Identity
}

// savedVM finds the template that boxlite has made for ordinary containers.
func savedVM(h *host) (v storedVM, err error) {
	path, err := h.boxlite().run("template", "path", h.template)
	if err != nil {
		return v, err
	}
	raw, err := os.ReadFile(filepath.Join(path, "manifest.json"))
	if err != nil {
		return v, err
	}
	manifest := struct {
		Identity *template.Identity `json:"identity"`
	}{&v.id}
	v.dir = filepath.Dir(path)
	return v, json.Unmarshal(raw, &manifest)
}

func bootBare(h *host) error {
	b, err := startBare(h.commands, h.rootfs(), nil)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), floorLimit)
		defer cancel()
		err = errors.Join(b.plugShare(ctx), b.hello())
	}
	return errors.Join(err, b.stop())
}

func restoreBare(h *host, saved storedVM) (err error) {
	c := h.commands
	c.qemu = append(c.qemu[:len(c.qemu):len(c.qemu)], "-incoming", "defer")
	b, err := startBare(c, h.rootfs(), nil)
	defer func() { err = errors.Join(err, b.stop()) }()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), floorLimit)
	defer cancel()
	if err := b.restore(ctx, saved); err != nil {
		return err
	}
	if err := b.plugShare(ctx); err != nil {
		return err
	}
	if err := b.hello(); err != nil {
		return err
	}
	return b.mountShare()
}

// restore copies the memory and has QEMU load the devices' state.
func (b *bare) restore(ctx context.Context, saved storedVM) error {
	store, err := template.Open(saved.dir, false)
	if err != nil {
		return err
	}
	defer store.Close()
	t, err := store.Load(saved.id)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.CopyMemory(b.memory); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	go func() {
		_, _ = w.Write(t.State) // what is missing QEMU complains about
		_ = w.Close()
	}()
	err = b.qmp.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": "state"}, nil, r)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	for _, command := range []struct {
		name string
		args map[string]any
	}{
		{"migrate-set-capabilities", map[string]any{"capabilities": []any{
			map[string]any{"capability": "x-ignore-shared", "state": true},
			map[string]any{"capability": "events", "state": true},
		}}},
		{"migrate-incoming", map[string]any{"uri": "fd:state"}},
	} {
		if err := b.qmp.Execute(ctx, command.name, command.args, nil); err != nil {
			return err
		}
	}
	if err := b.awaitCompletion(ctx); err != nil {
		return err
	}
	return b.qmp.Execute(ctx, "cont", nil, nil)
}

// hello asks guestinit what the monitor asks it first, which it answers as soon as it is there.
func (b *bare) hello() error {
	entropy := make([]byte, 64)
	if _, err := rand.Read(entropy); err != nil {
		return err
	}
	return b.call(guestproto.OpHello, guestproto.HelloRequest{Version: guestproto.Version, UnixNano: time.Now().UnixNano(), Entropy: entropy})
}

// mountShare asks for a container without a root, which guestinit finds out when it has mounted the share.
func (b *bare) mountShare() error {
	spec := &specs.Spec{Version: specs.Version, Root: &specs.Root{Path: guestproto.ShareDir + "/missing"}}
	err := b.call(guestproto.OpCreate, guestproto.CreateRequest{ID: "bare", Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "rootfs") {
		return fmt.Errorf("a container without rootfs: %w", err)
	}
	return nil
}

func (b *bare) call(op guestproto.Op, body any) error {
	if b.session == nil {
		var err error
		if b.session, err = yamux.Client(b.control, guestproto.SessionConfig(io.Discard)); err != nil {
			return err
		}
	}
	stream, err := b.session.OpenStream()
	if err != nil {
		return err
	}
	defer stream.Close()
	if err := stream.SetDeadline(time.Now().Add(floorLimit)); err != nil {
		return err
	}
	if err := guestproto.Call(stream, op, body, nil); err != nil {
		return fmt.Errorf("guest: %w (%s)", err, b.console)
	}
	return nil
}
