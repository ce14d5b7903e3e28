package template

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// memoryBuffer takes what CopyMemory writes.
type memoryBuffer struct {
	t    *testing.T
	data []byte
}

func (m *memoryBuffer) WriteAt(p []byte, at int64) (int, error) {
	if at < 0 || at > int64(len(m.data)-len(p)) {
		m.t.Errorf("%d bytes are written at %d, in a memory of %d", len(p), at, len(m.data))
		return 0, errors.New("outside")
	}
	return copy(m.data[at:], p), nil
}

// FuzzManifest reads any manifest in place of a template's own. It is refused, or
// the memory is the saved one.
func FuzzManifest(f *testing.F) {
	s, err := Open(filepath.Join(f.TempDir(), "store"), true)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	id := Identity{Format: formatVersion, Boot: "boot", Args: []string{"x"}, MemoryMiB: 1}
	saved := make([]byte, id.MemoryMiB<<20)
	for page, text := range map[int]string{0: "start", 3: "one", 4: "two", 200: "end"} {
		copy(saved[page*pageSize:], text)
	}
	mem, err := os.Create(filepath.Join(f.TempDir(), "memory"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = mem.Close() })
	if _, err := mem.Write(saved); err != nil {
		f.Fatal(err)
	}
	d, err := s.Begin(id)
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(d.SetState([]byte("devices")), d.SetMemory(mem)); err != nil {
		f.Fatal(err)
	}
	good := d.manifest
	f.Add(mustJSON(f, good))
	for _, change := range []func(*manifest){
		func(m *manifest) { m.Extents[2].Offset += pageSize },
		func(m *manifest) { m.Extents = append(m.Extents, extent{1 << 19, 1 << 62}) },
		func(m *manifest) { m.Extents[0].Length = -1 },
		func(m *manifest) { m.Identity.MemoryMiB = 1 << 44 },
		func(m *manifest) { m.StateSize = 1 << 62 },
	} {
		changed := good
		changed.Extents = append([]extent(nil), good.Extents...)
		change(&changed)
		f.Add(mustJSON(f, changed))
	}
	// Not by Commit, which collects what is of another boot.
	if err := errors.Join(d.write(manifestFile, func(*os.File) error { return nil }), s.root.Rename(d.Key+newSuffix, d.Key), d.dir.Close()); err != nil {
		f.Fatal(err)
	}
	file, err := s.root.OpenFile(filepath.Join(d.Key, manifestFile), os.O_RDWR, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = file.Close() })
	got := make([]byte, len(saved))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := file.WriteAt(raw, 0); err != nil {
			t.Fatal(err)
		}
		if err := file.Truncate(int64(len(raw))); err != nil {
			t.Fatal(err)
		}
		list, err := s.List()
		if err != nil || len(list) != 1 || list[0].Key != d.Key || list[0].Bytes < 0 {
			t.Errorf("List = %+v, %v, want the template", list, err)
		}
		tmpl, err := s.Load(id)
		if err != nil {
			if errors.Is(err, ErrNone) {
				t.Errorf("Load = %v, though it is there", err)
			}
			return
		}
		defer tmpl.Close()
		if string(tmpl.State) != "devices" {
			t.Errorf("State = %q", tmpl.State)
		}
		clear(got)
		if err := tmpl.CopyMemory(&memoryBuffer{t, got}); err == nil && !bytes.Equal(got, saved) {
			t.Errorf("manifest %s: the memory is not the saved one, and no error says so", raw)
		}
	})
}

func mustJSON(f *testing.F, m manifest) []byte {
	raw, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return raw
}
