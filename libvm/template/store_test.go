package template

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

const testMiB = 8

// identity is that of a VM whose only part is the file at path.
func identity(t *testing.T, arg, path string) Identity {
	t.Helper()
	id, err := NewIdentity(Identity{Args: []string{arg}, MemoryMiB: testMiB}, path, "")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// memory makes a sparse file with data at some places.
func memory(t *testing.T, data map[int64][]byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(testMiB << 20); err != nil {
		t.Fatal(err)
	}
	for at, piece := range data {
		if _, err := f.WriteAt(piece, at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func save(t *testing.T, s *Store, id Identity, mem *os.File) string {
	t.Helper()
	d, err := s.Begin(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.SetState([]byte("devices")), d.SetMemory(mem), d.Commit()); err != nil {
		t.Fatal(err)
	}
	return d.Key
}

func contents(t *testing.T, f *os.File) []byte {
	t.Helper()
	raw, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRoundTrip(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "a", "store"))
	id := identity(t, "x", "/proc/self/exe")
	if _, err := s.Load(id); !errors.Is(err, ErrNone) {
		t.Fatalf("Load from an empty store = %v, want %v", err, ErrNone)
	}
	page := bytes.Repeat([]byte("p"), pageSize)
	mem := memory(t, map[int64][]byte{
		0: []byte("start"), 3 * pageSize: page, 4 * pageSize: page, chunk - 1: []byte("across"),
		5 << 20:         make([]byte, 1<<20), // written, and zero
		testMiB<<20 - 1: []byte("e"),
	})
	key := save(t, s, id, mem)
	loaded, err := s.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	if loaded.Key != key || string(loaded.State) != "devices" {
		t.Errorf("Load = %s, state %q; want %s and what was saved", loaded.Key, loaded.State, key)
	}
	got := memory(t, nil)
	if err := loaded.CopyMemory(got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contents(t, got), contents(t, mem)) {
		t.Error("the copied memory is not the saved one")
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Key != key || list[0].Outdated {
		t.Fatalf("List = %+v, %v", list, err)
	}
	// start, two pages, and three more that hold the rest: zeros are not saved.
	if want := int64(6*pageSize + len("devices")); list[0].Bytes != want {
		t.Errorf("the template takes %d bytes, want %d", list[0].Bytes, want)
	}
	if err := s.Delete(key); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{key, "..", "x/y", ""} {
		if err := s.Delete(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Delete(%q) = %v, want %v", name, err, fs.ErrNotExist)
		}
	}
}

func TestOneMaker(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "store"))
	id := identity(t, "x", "/proc/self/exe")
	d, err := s.Begin(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Begin(id); !errors.Is(err, ErrBusy) {
		t.Errorf("Begin beside another = %v, want %v", err, ErrBusy)
	}
	if _, err := s.Load(id); !errors.Is(err, ErrNone) {
		t.Errorf("Load of a draft = %v, want %v", err, ErrNone)
	}
	if err := s.Collect(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.SetState([]byte("x")), d.SetMemory(memory(t, nil)), d.Commit()); err != nil {
		t.Fatalf("the draft was not left alone: %v", err)
	}
	if _, err := s.Begin(id); !errors.Is(err, ErrBusy) {
		t.Errorf("Begin of what is there = %v, want %v", err, ErrBusy)
	}
}

func TestIdentity(t *testing.T) {
	part := filepath.Join(t.TempDir(), "part")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(part, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	was, err := os.Stat(part)
	if err != nil {
		t.Fatal(err)
	}
	id := identity(t, "x", part)
	if again := identity(t, "x", part); again.Key() != id.Key() {
		t.Error("the same parts give two keys")
	}
	if other := identity(t, "y", part); other.Key() == id.Key() {
		t.Error("other arguments have the same key")
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	if id.outdated(boot) || !id.outdated("another boot") {
		t.Error("an identity is outdated after another boot, and only then")
	}
	// Changed contents of the same size and date: ctime tells.
	write("two")
	if err := os.Chtimes(part, was.ModTime(), was.ModTime()); err != nil {
		t.Fatal(err)
	}
	if identity(t, "x", part).Key() == id.Key() || !id.outdated(boot) {
		t.Error("a changed file is not seen")
	}
	if err := os.Remove(part); err != nil {
		t.Fatal(err)
	}
	if !id.outdated(boot) {
		t.Error("a missing file is not seen")
	}
}

func TestCollect(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "store"))
	part := filepath.Join(t.TempDir(), "part")
	if err := os.WriteFile(part, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mem := memory(t, nil)
	outdated := save(t, s, identity(t, "old", part), mem)
	if err := os.Remove(part); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for i := range keep + 2 {
		key := save(t, s, identity(t, fmt.Sprint(i), "/proc/self/exe"), mem)
		used := time.Unix(int64(i), 0)
		if err := s.root.Chtimes(key, used, used); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	if err := s.root.Mkdir("0123456789abcdef.new", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(); err != nil {
		t.Fatal(err)
	}
	names, err := s.names()
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(keys[2:]) // the two used longest ago have gone
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("left %q, want %q (outdated: %s)", names, want, outdated)
	}
}

func TestCheckExtents(t *testing.T) {
	for name, list := range map[string][]extent{
		"negative offset": {{-1, 2}},
		"no length":       {{0, 0}},
		"beyond the end":  {{90, 11}},
		"overflow":        {{1 << 62, 1 << 62}},
		"overlap":         {{0, 10}, {9, 1}},
		"out of order":    {{50, 1}, {0, 1}},
	} {
		if _, err := checkExtents(list, 100); err == nil {
			t.Errorf("%s: checkExtents(%v) succeeds", name, list)
		}
	}
	if total, err := checkExtents([]extent{{0, 10}, {10, 5}, {99, 1}}, 100); total != 16 || err != nil {
		t.Errorf("checkExtents = %d, %v, want 16", total, err)
	}
}
