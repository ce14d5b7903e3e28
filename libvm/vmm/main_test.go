package vmm

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/fakevm"
	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/self"
)

// TestMain has the test binary be QEMU, virtiofsd and the keeper of a standby VM too.
func TestMain(m *testing.M) {
	fakevm.Main()
	if os.Getenv(self.ArgsVar) != "" {
		os.Exit(keep())
	}
	os.Exit(m.Run())
}

func keep() int {
	conn, err := net.FileConn(os.NewFile(3, "sync"))
	if err != nil {
		panic(err)
	}
	return RunKeeper(conn.(*net.UnixConn), slog.New(slog.DiscardHandler))
}

// testMemoryMiB is little, as it is all copied.
const testMemoryMiB = 192

var testShape = plan.Shape{Kernel: "lean", MemoryMiB: testMemoryMiB, VCPUs: 1}

// factory makes fake VMs.
func factory(t *testing.T) (*Factory, fakevm.Programs) {
	t.Helper()
	programs := fakevm.Install(t)
	dir := t.TempDir()
	return &Factory{
		Parts: programs.Options, Accel: "tcg", TemplateDir: filepath.Join(dir, "templates"), TurnFile: filepath.Join(dir, "turns"),
		Log: slog.New(slog.DiscardHandler),
	}, programs
}

// transcript is a console's text, which a VM writes beside the test.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (tr *transcript) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.text.Write(p)
}

// commands are those that QEMU has got, without QMP's own, by their names.
func (tr *transcript) commands() (names []string) {
	for _, line := range tr.lines() {
		name, _, _ := strings.Cut(line, " ")
		if name != "qmp_capabilities" {
			names = append(names, name)
		}
	}
	return names
}

// lines are those commands with their arguments.
func (tr *transcript) lines() (lines []string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for line := range strings.Lines(tr.text.String()) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "qmp "); ok {
			lines = append(lines, command)
		}
	}
	return lines
}

// starter is for a container's VM, with a share.
func starter(t *testing.T, f *Factory) (*Starter, *transcript) {
	t.Helper()
	s, err := f.starter(testShape)
	if err != nil {
		t.Fatal(err)
	}
	console := new(transcript)
	s.Files = Files{Share: t.TempDir(), Root: t.TempDir(), Console: console}
	return s, console
}

// mustStart starts a VM that the test's end closes.
func mustStart(t *testing.T, s *Starter, templates string) (*VM, Origin) {
	t.Helper()
	v, origin, err := s.Start(templates)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v, origin
}

// example is a container for a rehearsal.
func example() *specs.Spec {
	return &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"}, Process: &specs.Process{Args: []string{"true"}, Cwd: "/"},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}},
	}
}

// descriptors are those that this process has open, of what the runtime has not for
// itself: what each of them is, sorted.
func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range entries {
		what, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(what, "anon_inode:") && !strings.HasSuffix(what, "/fd") {
			open = append(open, what)
		}
	}
	slices.Sort(open)
	return open
}

// countingDescriptors returns those of now, for wantNothingLeft. The garbage collector
// closes files that were forgotten, so until the test's end there is none.
func countingDescriptors(t *testing.T) []string {
	t.Helper()
	runtime.GC()
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	return descriptors(t)
}

// eventually waits for what follows an event that the test cannot see.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// wantNothingLeft compares the descriptors and the child processes with those before.
func wantNothingLeft(t *testing.T, before []string) {
	t.Helper()
	var now []string
	gone := func() bool { now = descriptors(t); return slices.Equal(now, before) }
	for deadline := time.Now().Add(5 * time.Second); !gone(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("open are %q, before there were %q", now, before)
			break
		}
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a process is left: wait4 = %v", err)
	}
}

// arguments decodes what QEMU got with a command.
func arguments(t *testing.T, line, command string) map[string]any {
	t.Helper()
	text, ok := strings.CutPrefix(line, command+" ")
	if !ok {
		t.Fatalf("QEMU got %q, want %s", line, command)
	}
	var args map[string]any
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		t.Fatal(err)
	}
	return args
}
