package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestWriteSpec(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	if err := writeSpec(path, exampleSpec()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	if spec.Version != specs.Version || spec.Root.Path != "rootfs" || len(spec.Process.Args) != 1 || spec.Process.Args[0] != "sh" {
		t.Errorf("config.json = %s", raw)
	}
	const want = "File config.json exists. Remove it first"
	if err := writeSpec(path, exampleSpec()); err == nil || err.Error() != want {
		t.Errorf("second writeSpec = %v, want %s", err, want)
	}
	if again, err := os.ReadFile(path); err != nil || string(again) != string(raw) {
		t.Errorf("the refused write changed the file: %v", err)
	}
	if err := writeSpec(filepath.Join(t.TempDir(), "none", "config.json"), exampleSpec()); err == nil {
		t.Error("a bundle that does not exist is accepted")
	}
}

func TestMakeRootless(t *testing.T) {
	spec := exampleSpec()
	makeRootless(spec, 1000, 100)
	types := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range spec.Linux.Namespaces {
		types[ns.Type] = true
	}
	if types[specs.NetworkNamespace] || !types[specs.UserNamespace] {
		t.Errorf("namespaces = %v, want user and not network", spec.Linux.Namespaces)
	}
	if m := spec.Linux.UIDMappings; len(m) != 1 || m[0] != (specs.LinuxIDMapping{HostID: 1000, Size: 1}) {
		t.Errorf("uid mappings = %+v", m)
	}
	if m := spec.Linux.GIDMappings; len(m) != 1 || m[0] != (specs.LinuxIDMapping{HostID: 100, Size: 1}) {
		t.Errorf("gid mappings = %+v", m)
	}
	if spec.Linux.Resources != nil {
		t.Errorf("resources = %+v, want none", spec.Linux.Resources)
	}
	for _, m := range spec.Mounts {
		if o := strings.Join(m.Options, ","); strings.Contains(o, "gid=") {
			t.Errorf("mount %s has options %s", m.Destination, o)
		}
	}
}
