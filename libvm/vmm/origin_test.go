package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/fakevm"
	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fdpass"
	"github.com/boxlite-oci/boxlite/libvm/template"
)

// The first VM of a kind boots and is saved while it stands still, the next is a copy
// with the same memory: the fake QEMU refuses to go on with another.
func TestTemplate(t *testing.T) {
	f, programs := factory(t)
	programs.QEMUFaults(fakevm.LateGuest)
	s, console := starter(t, f)
	v, origin := mustStart(t, s, f.TemplateDir)
	if origin.Template != "" || origin.Reason != template.ErrNone.Error() || origin.Warning != "" {
		t.Errorf("the first VM is %+v, want a boot for want of a template", origin)
	}
	v.Close()
	want := []string{"query-chardev", "stop", "getfd", "migrate-set-capabilities", "migrate", "query-migrate", "cont"}
	if got := console.commands(); !slices.Equal(got, want) {
		t.Errorf("to save it QEMU got %q, want %q", got, want)
	}

	s, console = starter(t, f)
	v, origin = mustStart(t, s, f.TemplateDir)
	if origin.Template == "" || origin.Reason != "" || !strings.HasPrefix(origin.String(), "copy of template ") {
		t.Errorf("the second VM is %+v, want a copy", origin)
	}
	v.Close()
	want = []string{"getfd", "migrate-set-capabilities", "migrate-incoming", "cont"}
	if got := console.commands(); !slices.Equal(got, want) {
		t.Errorf("to load it QEMU got %q, want %q", got, want)
	}
}

// Whatever is wrong with templates, the container has its VM, and somebody hears why.
func TestOriginFallsBack(t *testing.T) {
	f, programs := factory(t)
	key, err := f.CreateTemplate(testShape)
	if err != nil {
		t.Fatal(err)
	}
	damage := func(t *testing.T) {
		memory, err := os.OpenFile(filepath.Join(f.TemplateDir, key, "memory"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer memory.Close()
		if _, err := memory.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	open := func(t *testing.T) {
		if err := os.Chmod(f.TemplateDir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(f.TemplateDir, 0o700) })
	}
	busy := func(t *testing.T) {
		store, err := template.Open(f.TemplateDir, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		s, _ := starter(t, f)
		id, err := s.identity()
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Delete(id.Key()); err != nil {
			t.Fatal(err)
		}
		draft, err := store.Begin(id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = draft.Discard() })
	}
	parameters := func(s *Starter) { s.Config.machine.QEMUParameters = []string{"-name", "mine"} }
	scratch := func(s *Starter) {
		disk, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = disk.Close() })
		s.Files.Scratch = disk
	}
	for _, c := range []struct {
		name            string
		prepare         func(*testing.T)
		change          func(*Starter)
		fault           fakevm.Fault
		reason, warning string // warning's beginning
		saved           bool   // there is a template afterwards
	}{
		{name: "its own QEMU parameters", change: parameters, reason: "nobody knows whether a VM with QEMU parameters of its own can be saved", saved: true},
		{name: "a scratch disk", change: scratch, reason: "a scratch disk is not part of a template", saved: true},
		{name: "a directory that is open to others", prepare: open, reason: "templates cannot be used", warning: "template directory", saved: true},
		{name: "damaged memory", prepare: damage, reason: "the template is of no use", warning: "cold start: template " + key + ": memory: the checksum is wrong", saved: true},
		{name: "a state that QEMU does not load", fault: fakevm.Refuse("migrate-incoming"), reason: "the template is of no use", warning: "cold start: qmp migrate-incoming: refused", saved: true},
		{name: "somebody else who makes it", prepare: busy, reason: template.ErrBusy.Error()},
		{name: "a VM that cannot be saved", fault: fakevm.Refuse("migrate"), reason: template.ErrNone.Error(), warning: "save a template: qmp migrate: refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			programs.QEMUFaults(c.fault)
			if c.prepare != nil {
				c.prepare(t)
			}
			s, _ := starter(t, f)
			if c.change != nil {
				c.change(s)
			}
			v, origin := mustStart(t, s, f.TemplateDir)
			if origin.Template != "" || origin.Reason != c.reason || !strings.HasPrefix(origin.Warning, c.warning) || c.warning == "" && origin.Warning != "" {
				t.Errorf("origin = %+v, want reason %q and a warning that begins with %q", origin, c.reason, c.warning)
			}
			select {
			case <-v.Lost():
				t.Error("the VM has ended", v.LastWords())
			default:
			}
			if _, err := os.Stat(filepath.Join(f.TemplateDir, key, "manifest.json")); (err == nil) != c.saved {
				t.Errorf("the template: %v, want it there: %v", err, c.saved)
			}
		})
	}
	if left, err := filepath.Glob(filepath.Join(f.TemplateDir, "*.new")); err != nil || len(left) > 0 {
		t.Errorf("drafts are left: %q, %v", left, err)
	}
}

// CreateTemplate makes a template once, and anew what cannot be used. It leaves no
// draft of a VM that it could not save.
func TestCreateTemplate(t *testing.T) {
	f, programs := factory(t)
	programs.QEMUFaults(fakevm.Refuse("migrate"))
	if key, err := f.CreateTemplate(testShape); err == nil || !strings.Contains(err.Error(), "qmp migrate: refused") {
		t.Errorf("CreateTemplate = %q, %v", key, err)
	}
	if entries, err := os.ReadDir(f.TemplateDir); err != nil || len(entries) > 0 {
		t.Errorf("a draft is left: %v, %v", entries, err)
	}
	programs.QEMUFaults()
	key, err := f.CreateTemplate(testShape)
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(f.TemplateDir, key, "manifest.json")
	first, err := os.Stat(manifest)
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.CreateTemplate(testShape)
	if second, statErr := os.Stat(manifest); err != nil || statErr != nil || again != key || !os.SameFile(first, second) {
		t.Errorf("a second time: %q, %v, %v, want the same file of %q", again, err, statErr, key)
	}
	if err := os.WriteFile(manifest, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err = f.CreateTemplate(testShape); err != nil || again != key {
		t.Errorf("in place of a damaged one: %q, %v, want %q", again, err, key)
	}
	for _, bad := range []*Factory{{}, {TemplateDir: f.TemplateDir, Parts: f.Parts, Accel: "warp"}} {
		if key, err := bad.CreateTemplate(testShape); err == nil {
			t.Errorf("CreateTemplate of %+v = %q", bad, key)
		}
	}
	small := testShape
	small.MemoryMiB = 1
	if _, err := f.CreateTemplate(small); err == nil {
		t.Error("a VM of 1 MiB is made")
	}
}

// testKeeper runs RunKeeper in this process, up to where its VM stands by.
type testKeeper struct {
	sync   *net.UnixConn
	status chan int
	key    string
}

func runKeeper(t *testing.T, f *Factory) *testKeeper {
	t.Helper()
	ours, theirs := fakevm.Connections(t)
	k := &testKeeper{sync: ours, status: make(chan int, 1)}
	go func() {
		status := RunKeeper(theirs, slog.New(slog.DiscardHandler))
		_ = theirs.Close() // as the process's end does
		k.status <- status
	}()
	cfg := keeperConfig{Parts: f.Parts, Accel: f.Accel, TemplateDir: f.TemplateDir, Shape: testShape, Example: example()}
	if err := guestproto.WriteFrame(ours, cfg); err != nil {
		t.Fatal(err)
	}
	k.key = k.wants(t, keeperReady).Key
	return k
}

func (k *testKeeper) wants(t *testing.T, event string) keeperEvent {
	t.Helper()
	var ev keeperEvent
	if err := guestproto.ReadFrame(k.sync, guestproto.MaxReply, &ev); err != nil || ev.Event != event {
		t.Fatalf("the keeper says %+v, %v, want %s", ev, err, event)
	}
	return ev
}

// sockets are those of standby VMs.
func sockets(t *testing.T, f *Factory) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(f.TemplateDir, standbyDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A monitor takes a standby VM over: its connections work, its QEMU ends with it, and
// the keeper after that.
func TestTakeStandbyVM(t *testing.T) {
	f, _ := factory(t)
	key, err := f.CreateTemplate(testShape)
	if err != nil {
		t.Fatal(err)
	}
	before := countingDescriptors(t)
	k := runKeeper(t, f)
	if k.key != key || len(sockets(t, f)) != 1 {
		t.Errorf("the keeper's template is %s, not %s, and below it there is %q", k.key, key, sockets(t, f))
	}
	s, console := starter(t, f)
	s.Standby = true
	v, origin, err := s.Start(f.TemplateDir)
	if err != nil {
		t.Fatal(err)
	}
	if origin.Template != key || origin.Taken == nil || origin.Taken.Keeper != os.Getpid() {
		t.Fatalf("origin = %+v, want the keeper's VM", origin)
	}
	k.wants(t, keeperTaken)
	if left := sockets(t, f); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
	if err := errors.Join(v.PlugShare(), v.askToRehearse(guestproto.RehearsalRequest{})); err != nil {
		t.Errorf("the VM that was taken: %v", err)
	}
	v.Close()
	if got, want := console.commands(), []string{"cont", "device_add"}; !slices.Equal(got, want) {
		t.Errorf("the monitor's QMP got %q, want %q", got, want)
	}
	if status := <-k.status; status != 0 {
		t.Errorf("the keeper ends with %d", status)
	}
	if got := v.LastWords(); !strings.Contains(got, "(QEMU: signal: killed") {
		t.Errorf("last words %q, want QEMU's", got)
	}
	_ = k.sync.Close()
	wantNothingLeft(t, before)
}

// A VM that nobody wants goes, with its socket; so does one whose QEMU has ended.
func TestStandbyVMThatIsNotTaken(t *testing.T) {
	f, _ := factory(t)
	if _, err := f.CreateTemplate(testShape); err != nil {
		t.Fatal(err)
	}
	before := countingDescriptors(t)
	k := runKeeper(t, f)
	if err := k.sync.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if status := <-k.status; status != 0 {
		t.Errorf("unwanted, the keeper ends with %d", status)
	}
	_ = k.sync.Close()

	k = runKeeper(t, f)
	if err := unix.Kill(child(t, fakeQEMU), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if ev := k.wants(t, keeperFailed); !strings.HasPrefix(ev.Error, "QEMU ended (QEMU: signal: killed: ") {
		t.Errorf("the keeper says %q", ev.Error)
	}
	if status := <-k.status; status != 1 {
		t.Errorf("without its QEMU, the keeper ends with %d", status)
	}
	_ = k.sync.Close()
	if left := sockets(t, f); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
	wantNothingLeft(t, before)
}

const fakeQEMU = "fake-qemu"

// child is the pid of the one child of this process that has a name.
func child(t *testing.T, name string) int {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range entries {
		stat, _ := os.ReadFile(filepath.Join(dir, "stat")) // it may have ended
		var pid, parent int
		var comm, state string
		if n, _ := fmt.Sscan(string(stat), &pid, &comm, &state, &parent); n == 4 && parent == os.Getpid() && comm == "("+name+")" {
			return pid
		}
	}
	t.Fatalf("no child called %s", name)
	return 0
}

// What is wrong with a keeper costs the container nothing: it gets another VM, and the
// monitor keeps no descriptor of the first.
func TestStandbyVMOfNoUse(t *testing.T) {
	f, programs := factory(t)
	key, err := f.CreateTemplate(testShape)
	if err != nil {
		t.Fatal(err)
	}
	standby := filepath.Join(f.TemplateDir, standbyDir)
	if err := os.Mkdir(standby, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(standby)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	// serve is a keeper that does something else.
	serve := func(do func(*net.UnixConn)) {
		l, err := fdpass.Listen(dir, socketName(key, 1))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if conn, err := l.AcceptUnix(); err == nil {
				do(conn)
				_ = conn.Close()
			}
			_ = l.Close()
		}()
	}
	for name, prepare := range map[string]func(*Starter){
		"killed": func(*Starter) {
			l, err := fdpass.Listen(dir, socketName(key, 1))
			if err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
		},
		"silent":              func(*Starter) { serve(func(*net.UnixConn) {}) },
		"too few descriptors": func(*Starter) { serve(func(c *net.UnixConn) { _ = fdpass.Send(c, dir, dir) }) },
		"no handover":         func(*Starter) { serve(func(c *net.UnixConn) { _ = fdpass.Send(c, dir, dir, dir, dir) }) },
		"one socket": func(*Starter) {
			serve(func(c *net.UnixConn) {
				ours, theirs, err := fdpass.Socketpair()
				if err != nil {
					t.Error(err)
					return
				}
				_ = fdpass.Send(c, theirs, dir, dir, dir)
				_, _ = ours.Close(), theirs.Close()
				_ = guestproto.WriteFrame(c, Handover{Keeper: 1})
			})
		},
		"no sockets": func(*Starter) {
			serve(func(c *net.UnixConn) {
				_ = fdpass.Send(c, dir, dir, dir, dir)
				_ = guestproto.WriteFrame(c, Handover{Keeper: 1})
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := countingDescriptors(t)
			s, _ := starter(t, f)
			s.Standby = true
			prepare(s)
			v, origin, err := s.Start(f.TemplateDir)
			if err != nil {
				t.Fatal(err)
			}
			if origin.Taken != nil || origin.Template != key {
				t.Errorf("origin = %+v, want a copy", origin)
			}
			v.Close()
			wantNothingLeft(t, before)
			_ = os.Remove(filepath.Join(standby, socketName(key, 1))) // that of a keeper which was killed has gone
		})
	}

	// The keeper is as it should be, and the monitor cannot start its half.
	t.Run("no virtiofsd", func(t *testing.T) {
		before := countingDescriptors(t)
		k := runKeeper(t, f)
		s, _ := starter(t, f)
		broken := *s.Parts
		broken.Virtiofsd.Path = filepath.Join(programs.Dir, "none")
		s.Parts = &broken
		if v, taken := s.adopt(f.TemplateDir, key); v != nil || taken != nil {
			t.Errorf("adopt = %v, %v", v, taken)
		}
		if status := <-k.status; status != 0 {
			t.Errorf("the keeper ends with %d", status)
		}
		_ = k.sync.Close()
		wantNothingLeft(t, before)
	})
}

// Standby keeps as many VMs as it shall: one that is taken is replaced, and those that
// nobody took end with it.
func TestStandby(t *testing.T) {
	f, _ := factory(t)
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	ready, ended := make(chan string, 4), make(chan error, 1)
	go func() { ended <- f.Standby(ctx, testShape, example(), 1, func(key string) { ready <- key }) }()
	var key string
	select {
	case key = <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	s, _ := starter(t, f)
	s.Standby = true
	v, origin := mustStart(t, s, f.TemplateDir)
	if origin.Taken == nil || origin.Template != key {
		t.Errorf("origin = %+v, want the standby VM of %s", origin, key)
	}
	if again := <-ready; again != key {
		t.Errorf("the next VM is of template %s, not %s", again, key)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Standby = %v", err)
	}
	if left := sockets(t, f); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
	select {
	case <-v.qemu.done:
		t.Error("the VM that was taken has ended too")
	default:
	}
}

// A keeper that fails says why, and leaves nothing below the templates.
func TestStandbyFails(t *testing.T) {
	f, programs := factory(t)
	if _, err := f.CreateTemplate(testShape); err != nil {
		t.Fatal(err)
	}
	programs.QEMUFaults(fakevm.Refuse("netdev_add"))
	err := f.Standby(t.Context(), testShape, example(), 1, func(string) { t.Error("a VM is ready") })
	if err == nil || !strings.Contains(err.Error(), "qmp netdev_add: refused") {
		t.Errorf("Standby = %v", err)
	}
	if left := sockets(t, f); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
	if err := os.Remove(programs.Options.Dir + "/initramfs.cpio"); err != nil {
		t.Fatal(err)
	}
	if err := f.Standby(t.Context(), testShape, example(), 1, nil); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Standby without an initramfs = %v, want an error that no caller takes for the command's", err)
	}
}
