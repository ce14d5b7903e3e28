package engineconfig

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// seed adds what the golden files start from.
func seed(f *testing.F, pattern string) {
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || files == nil {
		f.Fatalf("%s: %v, %v", pattern, files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
}

// Whatever daemon.json says, the runtime gets into it and out again, and all else
// stays.
func FuzzDocker(f *testing.F) {
	seed(f, "docker-*.in")
	f.Fuzz(func(t *testing.T, text []byte) {
		found, err := dockerFormat{}.find(text, "boxlite")
		if err != nil || found != nil || len(bytes.TrimSpace(text)) == 0 {
			return
		}
		was := contents(t, text)
		installed, err := dockerFormat{}.add(text, asDefault(boxlite))
		if err != nil {
			t.Fatalf("add to %q: %v", text, err)
		}
		if now, err := (dockerFormat{}).find(installed, "boxlite"); err != nil || now == nil || !now.equal(asDefault(boxlite)) {
			return // which Install refuses
		}
		removed, err := dockerFormat{}.remove(installed, text, "boxlite")
		if err != nil {
			t.Fatalf("remove from %q: %v", installed, err)
		}
		if now := contents(t, removed); !reflect.DeepEqual(now, was) {
			t.Errorf("%q became %q and then %q", text, installed, removed)
		}
	})
}

// contents decodes an object. No runtimes and an empty list of them are the same, and
// so are no default and an empty one.
func contents(t *testing.T, text []byte) map[string]any {
	var all map[string]any
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if runtimes, _ := all["runtimes"].(map[string]any); len(runtimes) == 0 {
		delete(all, "runtimes")
	}
	if all["default-runtime"] == "" {
		delete(all, "default-runtime")
	}
	return all
}

// Whatever config.toml says, the runtime gets into it and out again, if that is
// possible, and the text is the same.
func FuzzContainerd(f *testing.F) {
	seed(f, "containerd-*.in")
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) == 0 || !bytes.HasSuffix(text, []byte("\n")) || bytes.Contains(text, []byte("# boxlite install: ")) {
			return
		}
		if found, err := (containerdFormat{}).find(text, "boxlite"); err != nil || found != nil {
			return
		}
		for _, rt := range []Runtime{boxlite, asDefault(boxlite)} {
			installed, err := containerdFormat{}.add(text, rt)
			if err != nil {
				t.Fatalf("add to %q: %v", text, err)
			}
			now, err := containerdFormat{}.find(installed, "boxlite")
			if err != nil || now == nil || !now.equal(rt) {
				continue // which Install refuses
			}
			removed, err := containerdFormat{}.remove(installed, nil, "boxlite")
			if err != nil || !bytes.Equal(removed, text) {
				t.Errorf("%q became %q and then %q, %v", text, installed, removed, err)
			}
		}
	})
}
