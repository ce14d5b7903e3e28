package libvm

import (
	"path"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

func TestLocate(t *testing.T) {
	inShare := func(name string) string { return path.Join(guestproto.ShareDir, name) }
	shown := shownFiles{places: placesOf(&specs.Spec{Root: &specs.Root{Path: inShare(plan.RootfsName)}, Mounts: []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/v", Type: "bind", Source: inShare("mounts/1")},
		{Destination: "etc/../conf", Type: "bind", Source: inShare("mounts/10")},
		{Destination: "/v/in", Type: "bind", Source: inShare("mounts/1/sub")},
	}})}
	for _, c := range []struct{ name, dir, below string }{
		{plan.RootfsName, "/", ""},
		{plan.RootfsName + "/etc/hosts", "/", "etc/hosts"},
		{"mounts/1", "/v", ""},
		{"mounts/1/a/b", "/v", "a/b"},
		{"mounts/1/sub/b", "/v/in", "b"},
		{"mounts/1/subway", "/v", "subway"},
		{"mounts/10", "/conf", ""},
		{"mounts/1/../../etc", "/v", "../../etc"}, // hostwatch refuses it
		{"mounts/2", "", ""},
		{"", "", ""},
		{"/", "", ""},
	} {
		dir, below, ok := shown.locate(c.name)
		if dir != c.dir || below != c.below || ok != (c.dir != "") {
			t.Errorf("locate(%q) = %q, %q, %v, want %q, %q", c.name, dir, below, ok, c.dir, c.below)
		}
	}
}
