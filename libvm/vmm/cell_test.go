package vmm

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestProgramPlaces(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "qemu")
	if err := os.Symlink("/opt/other/qemu", link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr", filepath.Join(dir, "linked")); err != nil {
		t.Fatal(err)
	}
	prefix := func(p string) []string {
		return []string{p + "/bin", p + "/lib", p + "/lib64", p + "/libexec", p + "/share"}
	}
	for program, want := range map[string][]string{
		"/usr/bin/no-such-qemu":          prefix("/usr"),
		"/opt/q/bin/qemu":                prefix("/opt/q"),
		"/home/me/build/qemu":            {"/home/me/build"},
		"/qemu":                          {"/qemu"},
		"/nix/store/abc-qemu/bin/qemu":   append([]string{"/nix/store"}, prefix("/nix/store/abc-qemu")...),
		link:                             {dir},
		dir + "/linked/bin/true":         slices.Concat(prefix(dir+"/linked"), prefix("/usr")),
		"/nix/storehouse/qemu":           {"/nix/storehouse"},
		"/no/such/directory/of/bin/qemu": prefix("/no/such/directory/of"),
	} {
		if got := programPlaces(program); !slices.Equal(got, want) {
			t.Errorf("programPlaces(%s) = %q, want %q", program, got, want)
		}
	}
}
