// Package template keeps VMs that were saved at the moment when their guest was
// ready and held nothing of a container yet. A container whose VM would look
// the same starts as a copy of one instead of booting.
//
// The store knows files, not QEMU: a template is a VM's memory, the state of its
// devices as a block of bytes, and the identity of the VM they came from. What
// is not exactly as it was written is an error, which callers answer with an
// ordinary boot.
//
// The directory of a template appears under its key by one rename and is never
// changed afterwards; the time of its last use is its own modification time.
// While it is made it is called KEY.new, and whoever makes it holds a lock
// (flock(2)) on that directory.
package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of Load and Begin that do not mean that something is wrong with the store.
var (
	ErrNone = errors.New("no template yet")
	ErrBusy = errors.New("a template is being made by another process")
)

const (
	manifestFile = "manifest.json"
	memoryFile   = "memory"
	stateFile    = "state"
	newSuffix    = ".new"
)

// Bounds on what is read, in bytes: some hundred times what there is.
const (
	maxManifest = 16 << 20
	maxState    = 64 << 20
)

// keyForm is what Identity.Key makes.
var keyForm = regexp.MustCompile(`^[0-9a-f]{16}$`)

// manifest is written last.
type manifest struct {
	Identity Identity  `json:"identity"`
	Created  time.Time `json:"created"`
	Extents  []extent  `json:"extents"`
	// Checksums are CRC-32C. That of the memory covers the extents too.
	MemorySum uint32 `json:"memoryCRC"`
	StateSum  uint32 `json:"stateCRC"`
	StateSize int64  `json:"stateSize"`

	memorySize int64 // of the extents together
}

// Store is a directory of templates, which nobody but its owner can look into.
type Store struct {
	root *os.Root
}

// Open opens the store at dir; with make it is made if it is missing, otherwise
// the error then matches ErrNone. A directory that belongs to another user or
// that others may enter is refused.
func Open(dir string, make bool) (*Store, error) {
	if make {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return nil, err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	st, err := root.Stat(".")
	if err == nil {
		err = checkOwner(st)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("template directory %s: %w", dir, err), root.Close())
	}
	return &Store{root}, nil
}

// Close lets the directory go.
func (s *Store) Close() error { return s.root.Close() }

// checkOwner refuses what anybody else could have written or can read: a
// template is the memory of every VM that starts from it.
func checkOwner(st fs.FileInfo) error {
	if uid := st.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() {
		return fmt.Errorf("belongs to uid %d", uid)
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("others have access to it (mode %#o)", perm)
	}
	return nil
}

// Template is an open template. The zero value is of no use.
type Template struct {
	// Key is the name it goes by.
	Key string
	// State is the state of the VM's devices.
	State []byte

	manifest manifest
	memory   *os.File
}

// Load opens the template of a VM. The error matches ErrNone if there is none;
// any other error means that the one which is there cannot be used.
func (s *Store) Load(id Identity) (*Template, error) {
	key := id.Key()
	t, err := s.open(key)
	if err != nil {
		return nil, err
	}
	if t.manifest.Identity.Key() != key {
		return nil, errors.Join(fmt.Errorf("template %s: it is another VM's", key), t.Close())
	}
	now := time.Now()
	if err := s.root.Chtimes(key, now, now); err != nil {
		return nil, errors.Join(fmt.Errorf("template %s: %w", key, err), t.Close())
	}
	return t, nil
}

// open reads a template and checks everything but its memory's checksum.
func (s *Store) open(key string) (_ *Template, err error) {
	m, err := s.readManifest(key)
	if err != nil {
		return nil, err
	}
	t := &Template{Key: key, manifest: *m}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("template %s: %w", key, err), t.Close())
		}
	}()
	var size int64
	if t.memory, size, err = s.openFile(key, memoryFile); err != nil {
		return nil, err
	}
	if size != m.memorySize {
		return nil, fmt.Errorf("%s has %d bytes, not %d", memoryFile, size, m.memorySize)
	}
	if t.State, err = s.readFile(key, stateFile, maxState); err != nil {
		return nil, err
	}
	if int64(len(t.State)) != m.StateSize || crc32.Checksum(t.State, castagnoli) != m.StateSum {
		return nil, fmt.Errorf("%s is damaged", stateFile)
	}
	return t, nil
}

func (s *Store) readManifest(key string) (*manifest, error) {
	raw, err := s.readFile(key, manifestFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := s.root.Lstat(key); errors.Is(err, fs.ErrNotExist) {
			return nil, ErrNone
		}
	}
	m := new(manifest)
	if err == nil {
		err = json.Unmarshal(raw, m)
	}
	if err == nil {
		m.memorySize, err = checkExtents(m.Extents, int64(m.Identity.MemoryMiB)<<20)
	}
	if err == nil && (m.StateSize < 0 || m.StateSize > maxState) {
		err = fmt.Errorf("%s of %d bytes", stateFile, m.StateSize)
	}
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", key, err)
	}
	return m, nil
}

// openFile opens a regular file of the store's owner.
func (s *Store) openFile(key, name string) (*os.File, int64, error) {
	f, err := s.root.OpenFile(filepath.Join(key, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err == nil {
		err = checkOwner(st)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return f, st.Size(), nil
}

func (s *Store) readFile(key, name string, most int64) ([]byte, error) {
	f, size, err := s.openFile(key, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > most {
		return nil, fmt.Errorf("%s has %d bytes", name, size)
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(f, raw); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return raw, nil
}

// CopyMemory fills memory, an empty file of the VM's size, with the template's.
// An error means that the template is damaged or that there is no room; what
// was written is then worthless.
func (t *Template) CopyMemory(memory io.WriterAt) error {
	sum, err := loadMemory(memory, t.memory, t.manifest.Extents)
	if err == nil && sum != t.manifest.MemorySum {
		err = errors.New("the checksum is wrong")
	}
	if err != nil {
		return fmt.Errorf("template %s: %s: %w", t.Key, memoryFile, err)
	}
	return nil
}

// Close lets the files go.
func (t *Template) Close() error {
	if t.memory == nil {
		return nil
	}
	return t.memory.Close()
}

// Info describes a template to people.
type Info struct {
	Key     string
	Created time.Time
	Used    time.Time
	Identity
	// Bytes is what it takes on disk.
	Bytes int64
	// Outdated says that no VM will start from it any more.
	Outdated bool
}

// List describes all templates, the one used last first. What cannot be read is
// listed with its key alone, as outdated.
func (s *Store) List() ([]Info, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	var list []Info
	for _, name := range names {
		st, err := s.root.Lstat(name)
		if !keyForm.MatchString(name) || err != nil {
			continue
		}
		info := Info{Key: name, Used: st.ModTime(), Outdated: true}
		if m, err := s.readManifest(name); err == nil {
			info.Created, info.Identity, info.Outdated = m.Created, m.Identity, m.Identity.outdated(boot)
			info.Bytes = m.StateSize + m.memorySize
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b Info) int { return b.Used.Compare(a.Used) })
	return list, nil
}

func (s *Store) names() ([]string, error) {
	dir, err := s.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

// Delete removes a template, which VMs that started from it do not need. The
// error matches fs.ErrNotExist if there is none.
func (s *Store) Delete(key string) error {
	if !keyForm.MatchString(key) {
		return fmt.Errorf("template %q: %w", key, fs.ErrNotExist)
	}
	if _, err := s.root.Lstat(key); err != nil {
		return fmt.Errorf("template %s: %w", key, errors.Unwrap(err))
	}
	return s.root.RemoveAll(key)
}

// keep is how many templates there can be beside a new one: containers with
// memory limits of their own each would otherwise make one each.
const keep = 15

// Collect removes outdated templates, those used longest ago if there are too many,
// and what a killed maker has left.
func (s *Store) Collect() error {
	list, err := s.List()
	if err != nil {
		return err
	}
	kept := 0
	var errs []error
	for _, info := range list {
		if info.Outdated || kept == keep {
			errs = append(errs, s.root.RemoveAll(info.Key))
			continue
		}
		kept++
	}
	names, err := s.names()
	errs = append(errs, err)
	for _, name := range names {
		if filepath.Ext(name) != newSuffix {
			continue
		}
		if dir, err := s.claim(name); err == nil {
			errs = append(errs, s.root.RemoveAll(name), dir.Close())
		}
	}
	return errors.Join(errs...)
}
