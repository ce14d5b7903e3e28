package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Draft is a template in the making.
type Draft struct {
	// Key is the name it will go by.
	Key string

	store    *Store
	dir      *os.File // the directory KEY.new, locked
	manifest manifest
}

// Begin starts a template. Of several processes that begin the same one, the
// first gets it, and the others' error matches ErrBusy. The caller ends the
// draft with Commit or Discard.
func (s *Store) Begin(id Identity) (*Draft, error) {
	key := id.Key()
	name := key + newSuffix
	err := s.root.Mkdir(name, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	dir, err := s.claim(name)
	if err != nil {
		return nil, err
	}
	d := &Draft{Key: key, store: s, dir: dir, manifest: manifest{Identity: id, Created: time.Now().UTC()}}
	if _, err := s.root.Lstat(key); err == nil { // made in this moment
		return nil, errors.Join(ErrBusy, d.Discard())
	}
	return d, nil
}

// claim locks the directory of a draft. What a former holder has left in it is
// overwritten.
func (s *Store) claim(name string) (*os.File, error) {
	dir, err := s.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrBusy // its maker has just renamed or removed it
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(ErrBusy, dir.Close())
	}
	locked, err := dir.Stat()
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	if now, err := s.root.Lstat(name); err != nil || !os.SameFile(locked, now) {
		return nil, errors.Join(ErrBusy, dir.Close())
	}
	return dir, nil
}

// SetState saves the state of the VM's devices.
func (d *Draft) SetState(state []byte) error {
	if len(state) == 0 || len(state) > maxState {
		return fmt.Errorf("device state of %d bytes", len(state))
	}
	d.manifest.StateSize, d.manifest.StateSum = int64(len(state)), crc32.Checksum(state, castagnoli)
	return d.write(stateFile, func(f *os.File) error {
		_, err := f.Write(state)
		return err
	})
}

// SetMemory saves the VM's memory, a sparse file. The VM must not run.
func (d *Draft) SetMemory(memory *os.File) error {
	return d.write(memoryFile, func(f *os.File) (err error) {
		d.manifest.Extents, d.manifest.MemorySum, err = saveMemory(f, memory)
		return err
	})
}

func (d *Draft) write(name string, fill func(*os.File) error) error {
	f, err := d.store.root.OpenFile(filepath.Join(d.Key+newSuffix, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(fill(f), f.Close())
}

// Commit makes the draft a template that Load finds, and then removes the
// templates that are of no use any more.
func (d *Draft) Commit() error {
	raw, err := json.Marshal(&d.manifest)
	if err == nil {
		err = d.write(manifestFile, func(f *os.File) error {
			_, err := f.Write(raw)
			return err
		})
	}
	if err == nil {
		err = d.store.root.Rename(d.Key+newSuffix, d.Key)
	}
	if err != nil {
		return errors.Join(err, d.Discard())
	}
	return errors.Join(d.store.Collect(), d.dir.Close())
}

// Discard removes the draft.
func (d *Draft) Discard() error {
	return errors.Join(d.store.root.RemoveAll(d.Key+newSuffix), d.dir.Close())
}
