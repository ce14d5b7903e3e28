package qmp

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// A real QEMU, with no machine in it: greeting, commands, an error, a file
// descriptor each way of sending one, events, and the end.
func TestRealQEMU(t *testing.T) {
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no qemu-system-x86_64 on PATH")
	}
	conn, peer, err := fdpass.Socketpair()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(binary, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd.Stderr = &stderr
	cmd.ExtraFiles = []*os.File{peer}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("QEMU: %s", stderr.Bytes())
		}
	}()

	ctx := testContext(t)
	c, err := New(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	var version struct {
		QEMU struct{ Major int } `json:"qemu"`
	}
	if err := c.Execute(ctx, "query-version", nil, &version); err != nil || version.QEMU.Major < 5 {
		t.Errorf("query-version = %+v, %v", version, err)
	}
	var refusal *Error
	if err := c.Execute(ctx, "no-such-command", nil, nil); !errors.As(err, &refusal) || refusal.Class != "CommandNotFound" {
		t.Errorf("no-such-command = %v", err)
	}
	var schema []struct{ Name string }
	if err := c.Execute(ctx, "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100 {
		t.Errorf("query-qmp-schema: %d entries, %v", len(schema), err)
	}

	file, err := os.CreateTemp(t.TempDir(), "fd")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := c.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": "one"}, nil, file); err != nil {
		t.Error(err)
	}
	if err := c.Execute(ctx, "closefd", map[string]any{"fdname": "one"}, nil); err != nil {
		t.Error(err)
	}
	var set struct {
		SetID int `json:"fdset-id"`
	}
	if err := c.ExecuteWithFile(ctx, "add-fd", map[string]any{"fdset-id": 7}, &set, file); err != nil || set.SetID != 7 {
		t.Errorf("add-fd = %+v, %v", set, err)
	}

	if err := c.Execute(ctx, "quit", nil, nil); err != nil {
		t.Errorf("quit = %v", err)
	}
	var names []string
	for e := range c.Events() {
		names = append(names, e.Name)
	}
	if len(names) != 1 || names[0] != "SHUTDOWN" {
		t.Errorf("events = %v, want SHUTDOWN", names)
	}
	if got, want := c.ShutdownCause(), "host-qmp-quit"; got != want {
		t.Errorf("cause of the shutdown = %q, want %q", got, want)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("QEMU: %v", err)
	}
}
