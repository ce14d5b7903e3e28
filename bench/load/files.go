package main

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	mib = 1 << 20
	// bufferBytes is what dd and cp take at a time, give or take.
	bufferBytes = 128 << 10
	writeMiB    = 256
)

// files reads big, which the guest has not seen yet, writes a file as large, unpacks small.tar, and walks what came out of
// it as find and "git status" do. What it has made it removes.
func files(dir string) (Figures, error) {
	f := Figures{}
	steps := []struct {
		name string
		do   func() (mibs float64, err error)
	}{
		{"read", func() (float64, error) { return readAll(filepath.Join(dir, "big")) }},
		{"write", func() (float64, error) { return writeMiB, writeAll(filepath.Join(dir, "written")) }},
		{"untar", func() (float64, error) { return 0, untar(filepath.Join(dir, "small.tar"), filepath.Join(dir, "tree")) }},
		{"find", func() (float64, error) { return 0, walk(filepath.Join(dir, "tree"), false) }},
		{"status", func() (float64, error) { return 0, walk(filepath.Join(dir, "tree"), true) }},
		{"remove", func() (float64, error) {
			return 0, errors.Join(os.Remove(filepath.Join(dir, "written")), os.RemoveAll(filepath.Join(dir, "tree")))
		}},
	}
	for _, s := range steps {
		began := time.Now()
		mibs, err := s.do()
		if err != nil {
			return nil, err
		}
		f[s.name] = time.Since(began).Seconds()
		if mibs > 0 {
			f[s.name] = mibs / f[s.name]
		}
	}
	return f, nil
}

func readAll(path string) (mibs float64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	n := 0
	for buf := make([]byte, bufferBytes); ; {
		k, err := file.Read(buf)
		n += k
		if errors.Is(err, io.EOF) {
			return float64(n) / mib, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func writeAll(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	buf := make([]byte, bufferBytes)
	for range writeMiB * mib / bufferBytes {
		if _, err := file.Write(buf); err != nil {
			return err
		}
	}
	return file.Sync()
}

func untar(archive, dir string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			continue
		}
		text, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
}

// walk lists every directory and, with status, looks at each file.
func walk(dir string, status bool) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && status {
			_, err = os.Lstat(path)
		}
		return err
	})
}
