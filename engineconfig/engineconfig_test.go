package engineconfig

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/internal/golden"
)

// boxlite is the runtime of the golden files.
var boxlite = Runtime{Name: "boxlite", Path: "/usr/local/bin/boxlite"}

func withArgs(rt Runtime, args ...string) Runtime {
	rt.Args = args
	return rt
}

func asDefault(rt Runtime) Runtime {
	rt.Default = true
	return rt
}

// Each case goes through its life: dry, installed, installed again, uninstalled.
func TestGolden(t *testing.T) {
	for _, tc := range []struct {
		name   string // of testdata/name.in and .out; without the first there is no file
		engine Engine
		rt     Runtime
	}{
		{"docker-tabs", Docker, withArgs(boxlite, "--debug", "--vcpus=2")},
		{"docker-oneline", Docker, asDefault(boxlite)},
		{"docker-spaces", Docker, asDefault(boxlite)},
		{"docker-crlf", Docker, withArgs(boxlite, "--debug")},
		{"docker-empty-object", Docker, boxlite},
		{"docker-two-lines", Docker, boxlite},
		{"docker-empty-file", Docker, boxlite},
		{"docker-new", Docker, asDefault(boxlite)},
		{"podman", Podman, boxlite},
		{"podman-default", Podman, asDefault(boxlite)},
		{"crio", CRIO, boxlite},
		{"crio-default", CRIO, asDefault(boxlite)},
		{"containerd-new", Containerd, boxlite},
		{"containerd-empty", Containerd, asDefault(boxlite)},
		{"containerd-debian", Containerd, boxlite},
		{"containerd-kubernetes", Containerd, asDefault(boxlite)},
		{"containerd-3", Containerd, asDefault(boxlite)},
		{"containerd-no-newline", Containerd, boxlite},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, err := os.ReadFile(filepath.Join("testdata", tc.name+".in"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "new", "config")
			if before != nil {
				file = writeFile(t, before)
			}
			c, err := tc.engine.Install(file, tc.rt)
			if err != nil {
				t.Fatalf("Install = %v", err)
			}
			golden.Compare(t, tc.name+".out", c.New)
			if now, _ := os.ReadFile(file); !bytes.Equal(now, before) {
				t.Errorf("Install has written already: %q", now)
			}
			apply(t, c)
			wantFile(t, file, c.New)
			if before != nil {
				wantFile(t, file+".before-boxlite", before)
			}
			again, err := tc.engine.Install(file, tc.rt)
			if err != nil || !again.Empty() {
				t.Errorf("second Install = %s, %v, want nothing to do", again.Diff(), err)
			}
			c, err = tc.engine.Uninstall(file, "boxlite")
			if err != nil {
				t.Fatalf("Uninstall = %v", err)
			}
			apply(t, c)
			wantFile(t, file, before)
			wantFile(t, file+".before-boxlite", nil)
			if c, err := tc.engine.Uninstall(file, "boxlite"); err != nil || !c.Empty() {
				t.Errorf("second Uninstall = %s, %v, want nothing to do", c.Diff(), err)
			}
		})
	}
}

// Without the file as it was, or with a file that has been changed since, what
// Install has done is taken out of the text.
func TestUninstallChangedFile(t *testing.T) {
	for _, tc := range []struct {
		engine               Engine
		before, edit, result string
		rt                   Runtime
	}{
		{
			Docker, "{\n  \"default-runtime\": \"crun\"\n}\n", `"default-runtime"=>"debug": true, "default-runtime"`,
			"{\n  \"debug\": true, \"default-runtime\": \"crun\"\n}\n", asDefault(boxlite),
		},
		{Docker, `{"debug":true,"runtimes":{"a":{"path":"/a"}}}`, "true=>false", `{"debug":false,"runtimes":{"a":{"path":"/a"}}}`, asDefault(boxlite)},
		{Docker, "{}", "{\n=>{\n  \"debug\": true,\n", "{\n  \"debug\": true\n}", boxlite},
		{
			Containerd, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"a\"\n", `"a"=>"b"`,
			"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"b\"\n", asDefault(boxlite),
		},
		{
			Containerd, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"a\" # b\n", `"a" # b=>"a" # c`,
			"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"a\" # c\n", asDefault(boxlite),
		},
	} {
		file := writeFile(t, []byte(tc.before))
		c, err := tc.engine.Install(file, tc.rt)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, c)
		from, to, _ := strings.Cut(tc.edit, "=>")
		edited := strings.Replace(string(c.New), from, to, 1)
		if edited == string(c.New) {
			t.Fatalf("%q is not in %s", from, c.New)
		}
		if err := os.WriteFile(file, []byte(edited), 0o644); err != nil {
			t.Fatal(err)
		}
		if c, err = tc.engine.Uninstall(file, "boxlite"); err != nil {
			t.Fatal(err)
		}
		if string(c.New) != tc.result {
			t.Errorf("Uninstall from\n%s\ngives\n%s\nwant\n%s", edited, c.New, tc.result)
		}
	}
}

// A runtime that somebody has made by hand is taken over, and goes as well.
func TestTakenOver(t *testing.T) {
	before := "{\n  \"runtimes\": {\n    \"boxlite\": { \"path\": \"/opt/boxlite\" },\n    \"b\": { \"path\": \"/b\" }\n  },\n  \"default-runtime\": \"b\"\n}\n"
	file := writeFile(t, []byte(before))
	for _, rt := range []Runtime{asDefault(boxlite), withArgs(boxlite, "--debug")} {
		c, err := Docker.Install(file, rt)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, c)
		wantFile(t, file+".before-boxlite", []byte(before))
	}
	c, err := Docker.Uninstall(file, "boxlite")
	if err != nil {
		t.Fatal(err)
	}
	apply(t, c)
	wantFile(t, file, []byte("{\n  \"runtimes\": {\n    \"b\": { \"path\": \"/b\" }\n  },\n  \"default-runtime\": \"b\"\n}\n"))
}

// What an install has made alone leaves nothing behind, whatever came between.
func TestInstalledTwice(t *testing.T) {
	for _, engine := range []Engine{Docker, Podman, CRIO, Containerd} {
		file := filepath.Join(t.TempDir(), "config")
		elsewhere := Runtime{Name: "boxlite", Path: "/usr/bin/boxlite"}
		for _, rt := range []Runtime{boxlite, elsewhere, asDefault(boxlite), elsewhere} {
			c, err := engine.Install(file, rt)
			if err != nil {
				t.Fatal(err)
			}
			apply(t, c)
			if again, err := engine.Install(file, rt); err != nil || !again.Empty() {
				t.Errorf("%s: second Install = %s, %v, want nothing to do", engine, again.Diff(), err)
			}
		}
		c, err := engine.Uninstall(file, "boxlite")
		if err != nil {
			t.Fatal(err)
		}
		apply(t, c)
		wantFile(t, file, nil)
		wantFile(t, file+".before-boxlite", nil)
	}
}

func TestTwoRuntimes(t *testing.T) {
	other := Runtime{Name: "boxlite-debug", Path: "/usr/local/bin/boxlite"}
	for _, engine := range []Engine{Docker, Containerd} {
		before := map[Engine]string{Docker: "{\n\t\"debug\": true\n}\n", Containerd: "version = 2\n"}[engine]
		for _, order := range [][2]string{{boxlite.Name, other.Name}, {other.Name, boxlite.Name}} {
			file := writeFile(t, []byte(before))
			for _, rt := range []Runtime{boxlite, other} {
				c, err := engine.Install(file, rt)
				if err != nil {
					t.Fatal(err)
				}
				apply(t, c)
			}
			for _, name := range order {
				c, err := engine.Uninstall(file, name)
				if err != nil {
					t.Fatal(err)
				}
				apply(t, c)
			}
			wantFile(t, file, []byte(before))
		}
	}
}

// What is refused leaves the file alone.
func TestRefused(t *testing.T) {
	named := func(name string) Runtime { return Runtime{Name: name, Path: "/x"} }
	for _, tc := range []struct {
		engine Engine
		text   string
		rt     Runtime
		want   string
	}{
		{Docker, "{\n  \"a\": 1,\n  \"b\": ü\n}", boxlite, "line 3, column 8: invalid character"},
		{Docker, "{\n  \"a\": 1", boxlite, "line 2, column 8: unexpected end"},
		{Docker, "{\"a\": 1,}", boxlite, "line 1, column 9: "},
		{Docker, "{ // no\n}", boxlite, "line 1, column 3: "},
		{Docker, "[]", boxlite, "line 1, column 1: it is not an object"},
		{Docker, "{\"runtimes\": {},\n\"runtimes\": {}}", boxlite, `line 2, column 1: "runtimes" is there twice`},
		{Docker, "{\"runtimes\": []}", boxlite, "line 1, column "},
		{Docker, "{}", named("runc"), "has a runtime of this name"},
		{Docker, "{}", named("a.b"), "letters, digits"},
		{Podman, "[engine]\n", boxlite, "not written by boxlite install"},
		{Podman, "", withArgs(boxlite, "--debug"), "podman has no place for flags"},
		{Containerd, "version = 2\n[plugins\n", boxlite, "line 2, column 9"},
		{Containerd, "[plugins]\n", boxlite, "names no version"},
		{Containerd, "version = 4\n", boxlite, "its version is 4"},
		{Containerd, "version = 2\ndisabled_plugins = [\"cri\"]\n", boxlite, `disabled_plugins has "cri"`},
		{Containerd, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncontainerd = {snapshotter = \"x\"}\n", boxlite, "not understood"},
		{Containerd, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.boxlite]\n", boxlite, "has not written"},
	} {
		file := writeFile(t, []byte(tc.text))
		c, err := tc.engine.Install(file, tc.rt)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Install in %q = %s, %v, want %q", tc.engine, tc.text, c.New, err, tc.want)
		}
		wantFile(t, file, []byte(tc.text))
	}
}

// config.toml of version 3 has directories of files that are merged with it; one of
// version 2 has files that replace what it says.
func TestContainerdImports(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(config, "version = 3\nimports = [\"conf.d/*.toml\"]\n")
	c, err := Containerd.Install(config, asDefault(boxlite))
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "conf.d/boxlite.toml"); c.Path != want {
		t.Errorf("Install changes %s, want %s", c.Path, want)
	}
	golden.Compare(t, "containerd-dropin.out", c.New)
	apply(t, c)
	if again, err := Containerd.Install(config, boxlite); err != nil || !again.Empty() {
		t.Errorf("second Install = %s, %v, want nothing to do", again.Diff(), err)
	}
	if c, err = Containerd.Uninstall(config, "boxlite"); err != nil {
		t.Fatal(err)
	}
	apply(t, c)
	wantFile(t, c.Path, nil)

	write(config, "version = 2\nimports = [\"conf.d/*.toml\"]\n")
	write(filepath.Join(dir, "conf.d/debug.toml"), "version = 2\n[debug]\nlevel = \"info\"\n")
	if c, err = Containerd.Install(config, boxlite); err != nil || c.Path != config {
		t.Errorf("Install changes %s, %v, want %s", c.Path, err, config)
	}
	write(filepath.Join(dir, "conf.d/pods.toml"), "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n")
	if _, err = Containerd.Install(config, boxlite); err == nil || !strings.Contains(err.Error(), "pods.toml, which replaces") {
		t.Errorf("Install = %v, want an error about pods.toml", err)
	}
}

// Mode, and a link in the file's place, stay as they are.
func TestApplyKeeps(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, []byte("{}"), 0o640), os.Symlink("file", link)); err != nil {
		t.Fatal(err)
	}
	c, err := Docker.Install(link, boxlite)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, c)
	if to, err := os.Readlink(link); err != nil || to != "file" {
		t.Errorf("the link points to %q, %v", to, err)
	}
	for _, path := range []string{file, file + ".before-boxlite"} {
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
			t.Errorf("%s: %v, %v, want mode 0640", path, info.Mode(), err)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(dir, ".*")); names != nil {
		t.Errorf("left over: %v", names)
	}
}

func TestDiff(t *testing.T) {
	file := writeFile(t, []byte("{\n  \"debug\": true\n}\n"))
	c, err := Docker.Install(file, boxlite)
	if err != nil {
		t.Fatal(err)
	}
	want := "--- FILE\n+++ FILE\n@@ -1,3 +1,8 @@\n {\n-  \"debug\": true\n+  \"debug\": true,\n+  \"runtimes\": {\n" +
		"+    \"boxlite\": {\n+      \"path\": \"/usr/local/bin/boxlite\"\n+    }\n+  }\n }\n"
	if got := strings.ReplaceAll(string(c.Diff()), file, "FILE"); got != want {
		t.Errorf("Diff =\n%s\nwant\n%s", got, want)
	}
}

func writeFile(t *testing.T, text []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func apply(t *testing.T, c Change) {
	t.Helper()
	if err := c.Apply(); err != nil {
		t.Fatalf("Apply = %v", err)
	}
}

// wantFile compares a file with want; nil is for none.
func wantFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if want == nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %q, %v, want no such file", path, got, err)
		}
		return
	}
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is %q, %v, want %q", path, got, err, want)
	}
}
