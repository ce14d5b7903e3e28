package vmm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/fakevm"
	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/template"
)

// A VM that boots: QEMU has its guest on the control port, a root with nothing in it,
// a user of its own and no capability. Close leaves nothing.
func TestBoot(t *testing.T) {
	f, _ := factory(t)
	before := countingDescriptors(t)
	s, _ := starter(t, f)
	v, origin, err := s.Start("")
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if got, want := origin.String(), "boot: templates are switched off"; got != want {
		t.Errorf("origin = %q, want %q", got, want)
	}
	req := guestproto.RehearsalRequest{}
	if err := v.askToRehearse(req); err != nil {
		t.Errorf("the guest: %v", err)
	}
	proc := fmt.Sprintf("/proc/%d/", v.qemu.pid)
	if entries, err := os.ReadDir(proc + "root"); err != nil || len(entries) > 0 {
		t.Errorf("QEMU's root has %v, %v", entries, err)
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	id := firstQEMU + os.Getpid()
	for _, want := range []string{fmt.Sprintf("Uid:\t%d\t", id), fmt.Sprintf("Gid:\t%d\t", id), "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("QEMU's status has no %q:\n%s", want, status)
		}
	}
	if v.memory != nil {
		t.Error("the monitor has kept the VM's memory")
	}
	v.Close()
	v.Close()
	wantNothingLeft(t, before)
}

// A start that fails, at whatever step, leaves no descriptor and no process.
func TestFailedStartLeavesNothing(t *testing.T) {
	f, programs := factory(t)
	if _, err := f.CreateTemplate(testShape); err != nil {
		t.Fatal(err)
	}
	store, err := template.Open(f.TemplateDir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	before := countingDescriptors(t)
	for name, c := range map[string]struct {
		fault  fakevm.Fault
		change func(*Starter)
		copies bool
		want   string
	}{
		"no root for QEMU":          {change: func(s *Starter) { s.Files.Root = filepath.Join(s.Files.Root, "none") }, want: "mount QEMU's root: ENOENT"},
		"no QEMU":                   {change: func(s *Starter) { p := *s.Parts; p.QEMU = "/none/qemu"; s.Parts = &p }, want: "start QEMU: ENOENT"},
		"no virtiofsd":              {change: func(s *Starter) { p := *s.Parts; p.Virtiofsd.Path = "/none/virtiofsd"; s.Parts = &p }, want: "start virtiofsd: ENOENT"},
		"a QEMU that ends":          {fault: fakevm.NoGreeting, want: "fake QEMU: no greeting"},
		"no QMP":                    {fault: fakevm.Refuse("qmp_capabilities"), want: "QEMU did not come up: qmp qmp_capabilities: refused"},
		"no descriptor taken":       {copies: true, fault: fakevm.Refuse("getfd"), want: "qmp getfd: refused"},
		"no migration":              {copies: true, fault: fakevm.Refuse("migrate-set-capabilities"), want: "refused"},
		"no incoming migration":     {copies: true, fault: fakevm.Refuse("migrate-incoming"), want: "refused"},
		"an end while it is loaded": {copies: true, fault: fakevm.DieAt("migrate-incoming"), want: "migrate-incoming"},
		"no going on":               {copies: true, fault: fakevm.Refuse("cont"), want: "qmp cont: refused"},
	} {
		t.Run(name, func(t *testing.T) {
			programs.QEMUFaults(c.fault)
			s, _ := starter(t, f)
			var from *template.Template
			if c.copies {
				id, err := s.identity()
				if err != nil {
					t.Fatal(err)
				}
				if from, err = store.Load(id); err != nil {
					t.Fatal(err)
				}
			}
			if c.change != nil {
				c.change(s)
			}
			_, err := start(s.Parts, s.Config, s.Files, from, nil, s.Log)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("start = %v, want an error with %q", err, c.want)
			}
			if from != nil {
				_ = from.Close()
			}
			wantNothingLeft(t, before)
		})
	}
}

// The end of either process is the end of the VM, and its last words say which.
func TestLost(t *testing.T) {
	f, _ := factory(t)
	for name, victim := range map[string]func(*VM) *process{
		"QEMU":      func(v *VM) *process { return v.qemu },
		"virtiofsd": func(v *VM) *process { return v.virtiofsd },
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := starter(t, f)
			v, _ := mustStart(t, s, "")
			lost := v.Lost()
			select {
			case <-lost:
				t.Fatal("lost already")
			default:
			}
			if err := unix.Kill(victim(v).pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-lost
			if got, want := v.LastWords(), "("+name+": signal: killed: "; !strings.Contains(got, want) {
				t.Errorf("last words %q, want %q", got, want)
			}
			if err := victim(v).onThread(func() error { return nil }); err == nil || !strings.Contains(err.Error(), "has ended") {
				t.Errorf("its thread still takes work: %v", err)
			}
		})
	}
}

// What is plugged in reaches QEMU in the order that a guest needs.
func TestHotplug(t *testing.T) {
	f, _ := factory(t)
	s, console := starter(t, f)
	v, _ := mustStart(t, s, "")
	tap, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	nic := NIC{Name: "net0", Port: NetworkPorts()[0], Function: 2, MAC: "52:54:00:00:00:01", MTU: 9000}
	if err := errors.Join(v.PlugShare(), v.PlugTap(nic, tap), v.PlugUserNIC()); err != nil {
		t.Fatal(err)
	}
	v.Close() // now the console is read to its end
	if got, want := console.commands(), []string{"device_add", "getfd", "netdev_add", "device_add", "netdev_add", "device_add"}; !slices.Equal(got, want) {
		t.Fatalf("QEMU got %q, want %q", got, want)
	}
	lines := console.lines()[1:] // without qmp_capabilities
	if args := arguments(t, lines[0], "device_add"); args["bus"] != "port0" || args["tag"] != guestproto.ShareTag {
		t.Errorf("share = %v", args)
	}
	if args := arguments(t, lines[3], "device_add"); args["addr"] != "0.2" || args["host_mtu"] != 9000.0 || args["bus"] != "port1" || args["netdev"] != "net0" {
		t.Errorf("NIC = %v", args)
	}
	if _, ok := (NIC{MTU: minHostMTU - 1}).device()["host_mtu"]; ok {
		t.Error("a NIC has an MTU that virtio-net does not know")
	}
}

// The memory device comes while the processors stand still, once; then it grows, in
// whole blocks.
func TestGrowMemory(t *testing.T) {
	f, programs := factory(t)
	s, console := starter(t, f)
	v, _ := mustStart(t, s, "")
	stopped := 0
	whileStopped := func(plug func() error) error {
		stopped++
		eventually(t, "object-add, and nothing after it", func() bool { return slices.Equal(console.commands(), []string{"object-add"}) })
		err := plug()
		eventually(t, "device_add", func() bool { return slices.Equal(console.commands(), []string{"object-add", "device_add"}) })
		return err
	}
	for _, grow := range []struct{ by, want int }{{0, 0}, {1, 128}, {100, 128}, {129, 256}, {50, 256}} {
		if err := v.GrowMemory(grow.by, whileStopped); err != nil || v.grownMiB != grow.want {
			t.Errorf("GrowMemory(%d) = %v, and the VM has grown by %d, not %d", grow.by, err, v.grownMiB, grow.want)
		}
	}
	if err := v.GrowMemory(hostMemoryMiB()+1, whileStopped); err == nil {
		t.Error("the VM grows beyond the host's memory")
	}
	v.Close()
	if got, want := console.commands(), []string{"object-add", "device_add", "qom-set"}; !slices.Equal(got, want) || stopped != 1 {
		t.Errorf("QEMU got %q and was stopped %d times, want %q and 1", got, stopped, want)
	}

	programs.QEMUFaults(fakevm.Refuse("device_add"))
	s, console = starter(t, f)
	v, _ = mustStart(t, s, "")
	if err := v.GrowMemory(1, whileStopped); err == nil || v.grownMiB != 0 {
		t.Errorf("a refused device: %v, grown by %d", err, v.grownMiB)
	}
	v.Close()
	if got, want := console.commands(), []string{"object-add", "device_add", "object-del"}; !slices.Equal(got, want) {
		t.Errorf("around a refused device QEMU got %q, want %q", got, want)
	}
}

// The process that does virtiofsd's work is found, and its limit known.
func TestOpenFileServer(t *testing.T) {
	f, _ := factory(t)
	s, _ := starter(t, f)
	v, _ := mustStart(t, s, "")
	server, err := v.OpenFileServer()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	stat, err := readAnew(server.stat)
	if err != nil || !strings.HasPrefix(stat, fmt.Sprint(v.virtiofsd.pid, " ")) {
		t.Errorf("stat = %q, %v, want that of %d", stat, err, v.virtiofsd.pid)
	}
	if n, err := v.MaxFiles(); err != nil || n < 3 {
		t.Errorf("MaxFiles = %d, %v", n, err)
	}
	v.Kill()
	if _, err := server.Work(); err == nil {
		t.Error("a process that has ended works")
	}
	if _, err := v.OpenFileServer(); err == nil {
		t.Error("a process that has ended is found")
	}
}
