package libvm

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// remains is what a command that was killed has left of a container: its directory, and
// a process that is its monitor.
func remains(t *testing.T, state, poststop string) (*Runtime, *exec.Cmd, string) {
	t.Helper()
	r := &Runtime{Root: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	dir, unlock, err := r.makeStateDir("left")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	monitor := exec.Command("sleep", "1000")
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = monitor.Process.Kill(), monitor.Wait() })
	st, err := statProcess(monitor.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{Version: specs.Version, Hooks: &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "pwd >" + poststop + "; false"}}}}}
	s := &State{ID: "left", Pid: monitor.Process.Pid, PidStart: st.start, Bundle: t.TempDir(), Spec: spec, NetNS: filepath.Join(t.TempDir(), "gone")}
	if state != "" {
		if err := writeState(dir, state, s); err != nil {
			t.Fatal(err)
		}
	}
	return r, monitor, dir
}

// DeleteRemains ends the monitor of a container that create has not finished, removes
// its directory and runs its hooks; a container that has come to life it leaves alone.
func TestDeleteRemains(t *testing.T) {
	for name, c := range map[string]struct {
		state      string
		gone, kill bool
	}{
		"a birth":          {birthFile, true, true},
		"nothing but dirs": {"", true, false},
		"a container":      {stateFile, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			trail := filepath.Join(t.TempDir(), "trail")
			r, monitor, dir := remains(t, c.state, trail)
			if err := r.DeleteRemains("left"); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); (err != nil) != c.gone {
				t.Errorf("the directory: %v, want it gone: %v", err, c.gone)
			}
			if _, err := os.Stat(trail); (err == nil) != c.kill {
				t.Errorf("the poststop hook's trail: %v, want it there: %v", err, c.kill)
			}
			_ = monitor.Process.Signal(unix.SIGTERM) // to one that has been killed it is nothing
			_ = monitor.Wait()
			if got := monitor.ProcessState.Sys().(interface{ Signal() unix.Signal }).Signal(); (got == unix.SIGKILL) != c.kill {
				t.Errorf("the monitor ended with %v", got)
			}
		})
	}
	r := &Runtime{Root: t.TempDir()}
	if err := r.DeleteRemains("none"); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	if err := r.DeleteRemains("../x"); !errors.Is(err, ErrInvalidID) {
		t.Errorf("of a bad id: %v", err)
	}
	other := filepath.Join(r.Root, "runc")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteRemains("runc"); err != nil {
		t.Errorf("of another runtime's: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("another runtime's directory: %v", err)
	}
}

// remove runs poststop hooks where the bundle is, or where the caller is if that has
// gone; a hook that fails is no error.
func TestRemoveRunsHooks(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, bundleGone := range []bool{false, true} {
		trail := filepath.Join(t.TempDir(), "trail")
		r, monitor, dir := remains(t, stateFile, trail)
		c, err := r.Load("left")
		if err != nil {
			t.Fatal(err)
		}
		want := c.Bundle
		if bundleGone {
			want = here
			if err := os.Remove(c.Bundle); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(monitor.Process.Kill(), c.awaitEnd()); err != nil {
			t.Fatal(err)
		}
		if err := c.Delete(false); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(trail); err != nil || strings.TrimSpace(string(text)) != want {
			t.Errorf("the hook ran in %q, %v, want %s", text, err, want)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("the directory is left")
		}
	}
}

// A pid that is another process's now is nobody's to kill.
func TestKillSparesOthers(t *testing.T) {
	r, monitor, _ := remains(t, stateFile, os.DevNull)
	c, err := r.Load("left")
	if err != nil {
		t.Fatal(err)
	}
	c.PidStart++
	if err := c.kill(); err != nil {
		t.Errorf("kill = %v", err)
	}
	if !alive(monitor.Process.Pid, c.PidStart-1) {
		t.Error("a process that is not the monitor was killed")
	}
}

// A state directory is claimed once. One that create left without a state is taken
// over, one of another runtime's is not.
func TestMakeStateDir(t *testing.T) {
	r := &Runtime{Root: filepath.Join(t.TempDir(), "root")}
	dir, unlock, err := r.makeStateDir("c")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	for _, name := range []string{socketFile, consoleLog, birthFile} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, unlock, err = r.makeStateDir("c"); err != nil {
		t.Fatalf("one that was left: %v", err)
	}
	unlock()
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{lockFile, rootDir, shareDir}; err != nil || !slices.Equal(names, want) {
		t.Errorf("taken over it has %q, %v, want %q", names, err, want)
	}
	if err := writeState(dir, stateFile, &State{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.makeStateDir("c"); !errors.Is(err, ErrExist) {
		t.Errorf("one that lives: %v, want %v", err, ErrExist)
	}
	if err := os.Mkdir(filepath.Join(r.Root, "runc"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.makeStateDir("runc"); !errors.Is(err, ErrExist) {
		t.Errorf("another runtime's: %v, want %v", err, ErrExist)
	}
}

// consoleTail quotes a panic's reason, or else the last line, without what a terminal
// would obey.
func TestConsoleTail(t *testing.T) {
	dir := t.TempDir()
	if got := consoleTail(dir); got != "" {
		t.Errorf("without a console: %q", got)
	}
	for text, want := range map[string]string{
		"":                      "",
		"one\ntwo\n":            ` (guest console: "two")`,
		"Kernel panic - x\ny\n": ` (guest console: "Kernel panic - x")`,
	} {
		if err := os.WriteFile(filepath.Join(dir, consoleLog), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := consoleTail(dir); got != want {
			t.Errorf("consoleTail of %q = %q, want %q", text, got, want)
		}
	}
}

// What of a spec's namespaces is made and what is joined.
func TestHostNamespaces(t *testing.T) {
	named := specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/proc/self/ns/ipc"}
	users := specs.LinuxNamespace{Type: specs.UserNamespace}
	for name, c := range map[string]struct {
		given []specs.LinuxNamespace
		fresh uintptr
		join  []specs.LinuxNamespace
	}{
		"none":                     {nil, unix.CLONE_NEWNS, nil},
		"new ones":                 {[]specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.TimeNamespace}}, unix.CLONE_NEWNS | unix.CLONE_NEWPID, nil},
		"another's":                {[]specs.LinuxNamespace{named}, unix.CLONE_NEWNS, []specs.LinuxNamespace{named}},
		"users":                    {[]specs.LinuxNamespace{users}, unix.CLONE_NEWNS | unix.CLONE_NEWUSER, nil},
		"users in a pod's network": {[]specs.LinuxNamespace{users, {Type: specs.NetworkNamespace, Path: "/x"}}, unix.CLONE_NEWNS, []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/x"}}},
	} {
		fresh, join := hostNamespaces(&specs.Spec{Linux: &specs.Linux{Namespaces: c.given}})
		if fresh != c.fresh || !slices.Equal(join, c.join) {
			t.Errorf("%s: hostNamespaces = %#x, %v, want %#x, %v", name, fresh, join, c.fresh, c.join)
		}
	}
	spec := &specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/proc/thread-self/ns/net"}}}}
	leaveHostNetwork(spec)
	if len(spec.Linux.Namespaces) != 0 {
		t.Errorf("the caller's own network is left in the spec: %v", spec.Linux.Namespaces)
	}
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: ownNetwork}}
	leaveHostNetwork(spec)
	if len(spec.Linux.Namespaces) != 1 {
		t.Error("a namespace that was asked for by the name for it is taken out")
	}
}
