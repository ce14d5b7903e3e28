package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// device is a node that every container has.
type device struct {
	path         string
	major, minor uint32
}

var defaultDevices = []device{
	{"/dev/null", 1, 3},
	{"/dev/zero", 1, 5},
	{"/dev/full", 1, 7},
	{"/dev/random", 1, 8},
	{"/dev/urandom", 1, 9},
	{"/dev/tty", 5, 0},
}

// defaultLinks are made where there is nothing of that name.
var defaultLinks = []struct{ path, target string }{
	{"/dev/fd", "/proc/self/fd"},
	{"/dev/stdin", "/proc/self/fd/0"},
	{"/dev/stdout", "/proc/self/fd/1"},
	{"/dev/stderr", "/proc/self/fd/2"},
}

// hasOwnDev says that the spec binds a ready-made /dev into the container,
// which is then left alone.
func hasOwnDev(spec *specs.Spec) bool {
	for _, m := range spec.Mounts {
		if filepath.Clean(m.Destination) == "/dev" {
			return planMount(m.Options).bind != 0 || m.Type == "bind"
		}
	}
	return false
}

// populateDev makes the device nodes and links of /dev. What is there already
// stays, as with runc: a bind mount, or a node of the spec's in a default one's
// place.
func populateDev(spec *specs.Spec, ids idMaps) error {
	for i := range spec.Linux.Devices {
		if err := makeDevice(&spec.Linux.Devices[i], ids); err != nil {
			return err
		}
	}
	for _, d := range defaultDevices {
		if err := makeNode(d.path, unix.S_IFCHR|0o666, unix.Mkdev(d.major, d.minor), 0, 0, ids); err != nil {
			return err
		}
	}
	// As runc: /dev/ptmx is always that of the container's own devpts.
	if err := os.Remove("/dev/ptmx"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	links := append(defaultLinks[:len(defaultLinks):len(defaultLinks)], struct{ path, target string }{"/dev/ptmx", "pts/ptmx"})
	if _, err := os.Stat("/proc/kcore"); err == nil {
		links = append(links, struct{ path, target string }{"/dev/core", "/proc/kcore"})
	}
	for _, l := range links {
		if err := os.Symlink(l.target, l.path); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// deviceTypes are the values of a device's type. "u" is an unbuffered
// character device.
var deviceTypes = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

func makeDevice(d *specs.LinuxDevice, ids idMaps) error {
	mode, ok := deviceTypes[d.Type]
	if !ok {
		return fmt.Errorf("device %s: unknown type %q", d.Path, d.Type)
	}
	permissions := uint32(0o666)
	if d.FileMode != nil {
		permissions = uint32(d.FileMode.Perm())
	}
	var uid, gid uint32
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	path := filepath.Join("/", d.Path)
	if path == "/dev/ptmx" || path == "/dev/console" {
		return nil // made otherwise
	}
	if err := makeDirs(filepath.Dir(path), ids); err != nil {
		return err
	}
	return makeNode(path, mode|permissions, unix.Mkdev(uint32(d.Major), uint32(d.Minor)), uid, gid, ids)
}

// makeNode makes a device node where there is nothing yet.
func makeNode(path string, mode uint32, dev uint64, uid, gid uint32, ids idMaps) error {
	err := unix.Mknod(path, mode, int(dev))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	if err := os.Chmod(path, os.FileMode(mode&0o777)); err != nil { // mknod heeds the umask
		return err
	}
	return ids.chown(path, uid, gid)
}
