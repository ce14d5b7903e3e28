package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// open makes a root with a directory beside it that nothing may touch.
func open(t *testing.T) (root *Root, dir, outside string) {
	t.Helper()
	top := t.TempDir()
	dir, outside = filepath.Join(top, "root"), filepath.Join(top, "outside")
	for _, d := range []string{dir, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root, dir, outside
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMountPoint(t *testing.T) {
	for _, c := range []struct {
		name string
		make string // "dir PATH", "file PATH", "link PATH TARGET"; several are apart by ;
		path string
		file bool
		want string // where it is in the root; empty for an error
	}{
		{"a directory that is there", "dir /a", "/a", false, "/a"},
		{"a file that is there", "file /a", "/a", true, "/a"},
		{"a missing directory and its parents", "", "/a/b/c", false, "/a/b/c"},
		{"a missing file", "dir /etc", "/etc/hosts", true, "/etc/hosts"},
		{"behind a link", "dir /run; link /var/run ../run", "/var/run/x", true, "/run/x"},
		{"an absolute link is one of the root", "link /a /b", "/a/x", false, "/b/x"},
		{"a dangling link", "dir /etc; link /etc/resolv.conf ../run/stub/resolv.conf", "/etc/resolv.conf", true, "/run/stub/resolv.conf"},
		{"dots do not lead out", "", "/../../../a", false, "/a"},
		{"a link does not lead out", "link /a ../../../outside", "/a/x", false, "/outside/x"},
		{"a file on a directory", "dir /a", "/a", true, ""},
		{"a directory on a file", "file /a", "/a", false, ""},
		{"below a file", "file /a", "/a/b", false, ""},
		{"a loop", "link /a b; link /b a", "/a", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, dir, outside := open(t)
			for line := range strings.SplitSeq(c.make, ";") {
				f := strings.Fields(line)
				if len(f) < 2 {
					continue
				}
				path := filepath.Join(dir, f[1])
				must(t, os.MkdirAll(filepath.Dir(path), 0o755))
				switch f[0] {
				case "dir":
					must(t, os.MkdirAll(path, 0o755))
				case "file":
					must(t, os.WriteFile(path, nil, 0o644))
				case "link":
					must(t, os.Symlink(f[2], path))
				}
			}
			f, err := root.MountPoint(c.path, c.file)
			if c.want == "" {
				if err == nil {
					t.Errorf("MountPoint(%q, %v) = nil error, want one", c.path, c.file)
				}
			} else {
				must(t, err)
				got, err := f.Stat()
				must(t, err)
				want, err := os.Lstat(filepath.Join(dir, c.want))
				must(t, err)
				if !os.SameFile(got, want) || got.IsDir() == c.file {
					t.Errorf("MountPoint(%q, %v) is not %s", c.path, c.file, c.want)
				}
			}
			if left, _ := os.ReadDir(outside); len(left) > 0 {
				t.Errorf("made outside the root: %v", left)
			}
		})
	}
}

// A magic link of procfs leads to where a descriptor is, whatever the root.
func TestMagicLinksLeadNowhere(t *testing.T) {
	root, dir, outside := open(t)
	must(t, os.Mkdir(filepath.Join(dir, "proc"), 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
	host, err := os.Open(outside)
	must(t, err)
	defer host.Close()
	if os.Geteuid() != 0 {
		t.Skip("mounting a procfs in the root takes root")
	}
	must(t, unix.Mount("proc", filepath.Join(dir, "proc"), "proc", 0, ""))
	defer func() { must(t, unix.Unmount(filepath.Join(dir, "proc"), unix.MNT_DETACH)) }()
	link := filepath.Join("/proc/self/fd", itoa(host.Fd()))
	must(t, os.Symlink(link, filepath.Join(dir, "a")))

	// The attack works by path, or this test proves nothing.
	if text, err := os.ReadFile(filepath.Join(dir, link, "secret")); err != nil || string(text) != "secret" {
		t.Fatalf("the magic link leads to %q, %v", text, err)
	}
	if text, err := root.ReadFile("/a/secret", 100); err == nil {
		t.Errorf("ReadFile through a magic link = %q", text)
	}
	if f, err := root.MountPoint("/a/made", false); err == nil {
		t.Errorf("MountPoint through a magic link = %s", f.Name())
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("made outside the root: %v", left)
	}
}

func itoa(n uintptr) string { return strconv.Itoa(int(n)) }

// Somebody who shares the root exchanges a directory with a link that leads out,
// again and again, while mount points are made below it.
func TestMountPointWhileTheRootChanges(t *testing.T) {
	root, dir, outside := open(t)
	flipped, link := filepath.Join(dir, "x"), filepath.Join(dir, "y")
	must(t, os.Mkdir(flipped, 0o755))
	must(t, os.Symlink("../outside", link))
	stop := make(chan struct{})
	var flipping sync.WaitGroup
	flipping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, flipped, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	})
	for i := range 3000 {
		name := "/x/d/" + itoa(uintptr(i%50))
		if f, err := root.MountPoint(name, i%2 == 0); err == nil {
			_ = f.Close()
		}
		_ = os.RemoveAll(filepath.Join(dir, "outside")) // where the link leads inside the root
	}
	close(stop)
	flipping.Wait()
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("made outside the root: %v", left)
	}
}

func TestReadFile(t *testing.T) {
	root, dir, outside := open(t)
	must(t, os.WriteFile(filepath.Join(dir, "small"), []byte("small"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "exact"), make([]byte, 64), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "large"), nil, 0o644))
	must(t, os.Truncate(filepath.Join(dir, "large"), 10<<30)) // sparse
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	for name, target := range map[string]string{"out": "../outside/secret", "link": "small", "zero": "/dev/zero"} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	for _, c := range []struct {
		name, want string
		err        error
	}{
		{"small", "small", nil},
		{"link", "small", nil},
		{"exact", string(make([]byte, 64)), nil},
		{"large", "", ErrTooLarge},
		{"fifo", "", ErrNotRegular},
		{".", "", ErrNotRegular},
		{"out", "", fs.ErrNotExist},
		{"zero", "", fs.ErrNotExist},
		{"missing", "", fs.ErrNotExist},
	} {
		got, err := root.ReadFile(c.name, 64)
		if !errors.Is(err, c.err) || string(got) != c.want {
			t.Errorf("ReadFile(%q) = %q, %v, want %q, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestPlainDirectory(t *testing.T) {
	root, dir, _ := open(t)
	must(t, os.Symlink("elsewhere", filepath.Join(dir, "link")))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	for name, ok := range map[string]bool{"/proc": true, "/link": false, "/file": false} {
		f, err := root.PlainDirectory(name)
		if err == nil {
			_ = f.Close()
		}
		if (err == nil) != ok {
			t.Errorf("PlainDirectory(%q) = %v, want success: %v", name, err, ok)
		}
	}
}
