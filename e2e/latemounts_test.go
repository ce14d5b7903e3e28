package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sharedMount is a directory of the host's whose mounts propagate, as everything does below systemd.
func (h *hand) sharedMount() string {
	h.Helper()
	dir := h.diskDir()
	h.noErr(unix.Mount("shared", dir, "tmpfs", 0, "mode=755"))
	h.noErr(unix.Mount("", dir, "", unix.MS_SHARED, ""))
	h.Cleanup(func() { h.noErr(unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// mountAt mounts a file system with the file f, in which its name is written.
func (h *hand) mountAt(dir string) {
	h.Helper()
	h.noErr(os.MkdirAll(dir, 0o755))
	h.noErr(unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=777"))
	h.noErr(os.WriteFile(filepath.Join(dir, "f"), []byte(filepath.Base(dir)), 0o644))
}

// Mounts that the host makes below a bind after create show, and go, where the bind's propagation says so.
func TestMountsMadeLater(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		dir := h.sharedMount()
		in := func(name string) string { return filepath.Join(dir, name) }
		h.mountAt(in("early"))
		h.noErr(os.MkdirAll(in("late"), 0o755))
		h.noErr(os.MkdirAll(in("deep/deeper"), 0o755))
		b := h.bundle("later", "sleep 1000", func(s *specs.Spec) {
			for dest, options := range map[string][]string{
				"/slave": {"rbind", "rslave"}, "/private": {"rbind", "rprivate"}, "/plain": {"rbind"}, "/ro": {"rbind", "ro", "rslave"}, "/top": {"bind", "slave"},
			} {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: dir, Options: options})
			}
		})
		c := h.create(b)
		c.start()
		look := func() string {
			return h.must("exec", b.id, "sh", "-c", `for v in slave private plain ro top; do echo $v $(cat /$v/early/f /$v/late/f /$v/deep/deeper/f 2>/dev/null | sed 's/r\?$/&,/'); done`)
		}
		wait := func(what, want string) {
			h.Helper()
			var got string
			if err := waitFor(what, func() bool { got = look(); return got == want }); err != nil {
				h.Fatalf("%v: %s\nwant %s", err, got, want)
			}
		}
		wait("what was there", "slave early,\nprivate early,\nplain early,\nro early,\ntop\n")
		h.mountAt(in("late"))
		h.mountAt(in("deep/deeper"))
		wait("what comes later", "slave earlylatedeeper,\nprivate early,\nplain earlylatedeeper,\nro earlylatedeeper,\ntop latedeeper,\n")
		h.must("exec", b.id, "sh", "-c", "echo written >/slave/late/new")
		text, err := os.ReadFile(in("late/new"))
		h.noErr(err)
		h.want("a file of the container's", string(text), "written\n")
		var late unix.Stat_t
		h.noErr(unix.Stat(in("late"), &late))
		if h.rt.isVM() { // under runc it is the mount's own
			if r := h.cmd("exec", b.id, "sh", "-c", "echo written >/ro/late/not"); !strings.Contains(r.stderr, "Read-only file system") {
				h.Errorf("write below a read-only bind: %s", r)
			}
			h.wantGuarded(c.pid)
		}
		// The container has looked there, and may look on: the host unmounts nevertheless.
		h.noErr(unix.Unmount(in("late"), 0))
		h.noErr(unix.Unmount(in("early"), 0))
		wait("what goes", "slave deeper,\nprivate early,\nplain deeper,\nro deeper,\ntop deeper,\n")
		h.mountAt(in("late"))
		h.mountAt(in("late")) // one on the other
		wait("what comes again", "slave latedeeper,\nprivate early,\nplain latedeeper,\nro latedeeper,\ntop latedeeper,\n")
		h.noErr(unix.Unmount(in("late"), 0))
		wait("the lower one", "slave latedeeper,\nprivate early,\nplain latedeeper,\nro latedeeper,\ntop latedeeper,\n")
		if h.rt.isVM() {
			h.wantUnused(c.pid, late.Dev)
		}
		h.must("delete", "--force", b.id)
		h.wantNoProcess(b)
	})
}

// A whole tree of mounts comes at once, with mounts in it that others hide.
func TestTreeOfMountsMadeLater(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		shared := h.sharedMount()
		dir, tree := filepath.Join(shared, "volume"), filepath.Join(shared, "tree")
		h.noErr(os.MkdirAll(filepath.Join(dir, "at"), 0o755))
		h.mountAt(tree)
		h.mountAt(filepath.Join(tree, "stack"))
		h.noErr(unix.Mount("tmpfs", filepath.Join(tree, "stack"), "tmpfs", 0, ""))
		h.noErr(os.WriteFile(filepath.Join(tree, "stack/f"), []byte("upper"), 0o644))
		h.mountAt(filepath.Join(tree, "over/hidden"))
		h.noErr(unix.Mount("tmpfs", filepath.Join(tree, "over"), "tmpfs", 0, ""))
		h.noErr(os.Mkdir(filepath.Join(tree, "over/hidden"), 0o755))
		h.noErr(os.WriteFile(filepath.Join(tree, "over/hidden/f"), []byte("hides"), 0o644))
		b := h.bundle("tree", "sleep 1000", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: dir, Options: []string{"rbind", "rslave"}})
		})
		c := h.create(b)
		c.start()
		h.noErr(unix.Mount(tree, filepath.Join(dir, "at"), "", unix.MS_BIND|unix.MS_REC, ""))
		shown := func() string {
			return h.must("exec", b.id, "sh", "-c", "cat /v/at/stack/f /v/at/over/hidden/f 2>/dev/null; true")
		}
		h.noErr(waitFor("the tree shows", func() bool { return shown() == "upperhides" }))
		if h.rt.isVM() { // and nothing mounts and unmounts for ever
			before := h.mountsOfMirror(c.pid)
			h.want("the tree", shown(), "upperhides")
			h.want("the mirror's mounts", h.mountsOfMirror(c.pid), before)
		}
		h.noErr(unix.Unmount(filepath.Join(dir, "at"), unix.MNT_DETACH))
		h.noErr(waitFor("the tree goes", func() bool { return shown() == "" }))
		h.must("delete", "--force", b.id)
		h.wantNoProcess(b)
	})
}

// mountsOfMirror is the mirror's list of mounts, with their ids.
func (h *hand) mountsOfMirror(monitor int) string {
	h.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", h.childrenOf(monitor)["boxlite"]))
	h.noErr(err)
	return string(text)
}

// wantGuarded wants each mount that a monitor's virtiofsd sees to open no device, and those of the bind that is read-only to be.
func (h *hand) wantGuarded(monitor int) {
	h.Helper()
	for name, pid := range h.childrenOf(monitor) {
		if name != "virtiofsd" {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
		h.noErr(err)
		mounts, err := mountinfo.GetMountsFromReader(f, nil)
		h.noErr(err)
		h.noErr(f.Close())
		for _, m := range mounts {
			if !strings.Contains(m.Options, "nodev") && m.FSType != "proc" {
				h.Errorf("virtiofsd's %s has the options %s", m.Mountpoint, m.Options)
			}
		}
	}
}

// wantUnused waits until virtiofsd has no file of that device open.
func (h *hand) wantUnused(monitor int, device uint64) {
	h.Helper()
	serves := 0
	for _, pid := range h.childrenOf(h.childrenOf(monitor)["virtiofsd"]) {
		serves = pid
	}
	used := func() (files []string) {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", serves))
		h.noErr(err)
		for _, fd := range fds {
			var st unix.Stat_t
			if unix.Stat(fd, &st) == nil && st.Dev == device {
				files = append(files, fd)
			}
		}
		return files
	}
	if err := waitFor("the device is free", func() bool { return len(used()) == 0 }); err != nil {
		h.Errorf("%v: %v", err, used())
	}
}

// The mirror of mounts is killed: what shows stays, and the container lives.
func TestMirrorOfMountsKilled(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := h.sharedMount()
		h.noErr(os.MkdirAll(filepath.Join(dir, "late"), 0o755))
		b := h.bundle("mirror", "sleep 1000", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: dir, Options: []string{"rbind", "rslave"}})
		})
		c := h.create(b)
		c.start()
		mirror := h.childrenOf(c.pid)["boxlite"]
		if mirror == 0 {
			h.Fatalf("children of the monitor: %v", h.childrenOf(c.pid))
		}
		h.wantPowers(mirror, ownID(c.pid), row(rowMirror, false))
		h.mountAt(filepath.Join(dir, "late"))
		shows := func() bool { return h.cmd("exec", b.id, "cat", "/v/late/f").stdout == "late" }
		h.noErr(waitFor("the mount shows", shows))
		h.noErr(syscall.Kill(mirror, syscall.SIGKILL))
		h.noErr(waitFor("the mirror ends", func() bool { return h.childrenOf(c.pid)["boxlite"] == 0 }))
		if !shows() {
			h.Error("the mount has gone with the mirror")
		}
		h.must("delete", "--force", b.id)
		h.wantNoProcess(b)
	})
}

func TestPropagationTowardsTheHost(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("shared", "true", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: h.diskDir(), Options: []string{"rbind", "rshared"}})
		})
		h.wantFail(`mount /v: propagation rshared: what is mounted in a VM cannot show on the host: use rslave`, "run", "--bundle", b.dir, b.id)
		h.wantNoProcess(b)
	})
}
