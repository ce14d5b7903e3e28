package libvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

func TestParseStat(t *testing.T) {
	// The name of a process may look like the fields around it.
	line := "77 (a) S (b)) Z 1 77 77 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 5 0 987654 1000 1 18446744073709551615"
	st, err := parseStat(line)
	if err != nil || st.state != 'Z' || st.start != 987654 {
		t.Errorf("parseStat = %+v, %v, want state Z, start 987654", st, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1 2 3"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) gives no error", bad)
		}
	}
}

func TestAlive(t *testing.T) {
	self, err := statProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !alive(os.Getpid(), self.start) {
		t.Error("this process is not alive")
	}
	if alive(os.Getpid(), self.start+1) {
		t.Error("a process of another start time passes for this one")
	}
	if alive(0, 0) {
		t.Error("pid 0 is alive")
	}
}

func TestStateDir(t *testing.T) {
	for _, id := range []string{"", ".", "..", "a/b", "../x", "a b", "a\n"} {
		if _, err := stateDir("/run/boxlite", id); !errors.Is(err, ErrInvalidID) {
			t.Errorf("stateDir(%q) = %v, want ErrInvalidID", id, err)
		}
	}
	if dir, err := stateDir("/run/boxlite", "a+B_1.2-c"); err != nil || dir != "/run/boxlite/a+B_1.2-c" {
		t.Errorf("stateDir = %q, %v", dir, err)
	}
}

// A container can be deleted while others wait for its lock: they find that it has gone,
// and leave nothing in its place.
func TestLockOfADeletedContainer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c1")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); !errors.Is(err, ErrNotExist) {
		t.Errorf("lock of a directory without one: %v, want %v", err, ErrNotExist)
	}
	if err := makeLock(dir); err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	const waiting = 4
	waited := make(chan error, waiting)
	for range waiting {
		go func() {
			_, err := lock(dir)
			waited <- err
		}()
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
	unlock()
	for range waiting {
		if err := <-waited; !errors.Is(err, ErrNotExist) {
			t.Errorf("lock of a container that is deleted meanwhile: %v, want %v", err, ErrNotExist)
		}
	}
}

func TestReadState(t *testing.T) {
	dir := t.TempDir()
	if _, err := readState(filepath.Join(dir, "none"), stateFile); !errors.Is(err, ErrNotExist) {
		t.Errorf("no directory: %v, want ErrNotExist", err)
	}
	if _, err := readState(dir, stateFile); !errors.Is(err, ErrNotExist) {
		t.Errorf("no state file: %v, want ErrNotExist", err)
	}
	want := &State{ID: "c1", Pid: 7, Spec: &specs.Spec{Version: "1.0.2"}}
	if err := writeState(dir, stateFile, want); err != nil {
		t.Fatal(err)
	}
	got, err := readState(dir, stateFile)
	if err != nil || got.ID != "c1" || got.Pid != 7 {
		t.Errorf("readState = %+v, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("writeState leaves %v (%v), want the state file alone", entries, err)
	}
	// runc keeps a state.json of another form in the same place.
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"id":"c1","init_process_pid":7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readState(dir, stateFile); err == nil || errors.Is(err, ErrNotExist) {
		t.Errorf("another runtime's state: %v, want an error of its own", err)
	}
}

func TestControlErrorKeepsItsMeaning(t *testing.T) {
	for _, sentinel := range sentinelKinds {
		wrapped := fmt.Errorf("start: %w", sentinel)
		got := toControlError(wrapped).err()
		if !errors.Is(got, sentinel) || got.Error() != wrapped.Error() {
			t.Errorf("%v became %v", wrapped, got)
		}
	}
	in := guestproto.Errorf(guestproto.CodeCommand, "exec: %q: executable file not found in $PATH", "x")
	var out *guestproto.Error
	if err := toControlError(fmt.Errorf("guest: %w", in)).err(); !errors.As(err, &out) || out.Code != guestproto.CodeCommand {
		t.Errorf("a guest error became %v", err)
	}
	if err := toControlError(nil).err(); err != nil {
		t.Errorf("nil became %v", err)
	}
}
