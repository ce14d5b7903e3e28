package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// Detach keeps the monitor's mounts from the host, while the host's unmounts still
// reach the monitor. Otherwise a container would keep the rootfs of another one
// busy.
func Detach() error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount / rslave: %w", err)
	}
	return nil
}

// MountShare builds the directory that virtiofsd serves, at dir, in the
// monitor's own mount namespace: a tmpfs with one mount for each of binds.
// What is read-only to the container is read-only here already, so that a guest
// that breaks its own kernel still cannot write it.
//
// It returns the binds that follow the host: where the host may mount something
// later. The caller closes their files, also with an error.
func MountShare(dir string, binds []plan.Bind, mountLabel string) (following []Following, err error) {
	options := label.FormatMountLabel("mode=0755,size=1m", mountLabel)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return nil, fmt.Errorf("mount the share: %w", err)
	}
	for _, b := range binds {
		f, err := bindInto(filepath.Join(dir, b.Name), b, mountLabel)
		if f != nil {
			following = append(following, *f)
		}
		if err != nil {
			return following, fmt.Errorf("share %s: %w", b.Source, err)
		}
	}
	return following, nil
}

// Following is a bind that follows the host, as two detached mounts (open_tree(2)).
type Following struct {
	plan.Bind
	// Source is a copy that the kernel propagates the host's mounts to.
	Source *os.File
	// Share is a peer of what virtiofsd serves: what is mounted on one is on both.
	Share *os.File
}

// CloseFollowing closes their files.
func CloseFollowing(following []Following) {
	for _, f := range following {
		for _, mount := range []*os.File{f.Source, f.Share} {
			if mount != nil {
				_ = mount.Close() // nothing was written
			}
		}
	}
}

func bindInto(target string, b plan.Bind, mountLabel string) (*Following, error) {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return nil, err
	}
	if err := MakeMountPoint(target, b.File); err != nil {
		return nil, err
	}
	var err error
	if b.Overlay != "" {
		err = mountOverlay(target, b, mountLabel)
	} else {
		flags := uintptr(unix.MS_BIND)
		if b.Recursive {
			flags |= unix.MS_REC
		}
		err = unix.Mount(b.Source, target, "", flags, "")
	}
	if err != nil {
		return nil, err
	}
	var f *Following
	if b.Follows {
		if f, err = follow(target, b); err != nil {
			return f, err
		}
	}
	// Devices are the guest's own business: a node in a shared directory shall
	// open the guest's device there and can open none here.
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if b.ReadOnlyBelow || b.ReadOnly && !b.Recursive {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err = unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr)
	if err == nil && b.ReadOnly && attr.Attr_set&unix.MOUNT_ATTR_RDONLY == 0 {
		top := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		err = unix.MountSetattr(unix.AT_FDCWD, target, 0, &top)
	}
	if err != nil {
		return f, fmt.Errorf("mount_setattr: %w", err)
	}
	if f != nil {
		f.Share, err = makePeer(target)
	}
	return f, err
}

// follow copies a bind that the kernel still propagates the host's mounts to. It
// returns nil if nothing is propagated there: no mount in it is another's slave.
func follow(target string, b plan.Bind) (*Following, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(target))
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return strings.Contains(m.Optional, "master:") }) {
		return nil, nil
	}
	source, err := CopyTree(target)
	if err != nil {
		return nil, err
	}
	return &Following{Bind: b, Source: source}, nil
}

// makePeer has what is mounted on what target has, and its copy, be on both.
func makePeer(target string) (*os.File, error) {
	attr := unix.MountAttr{Propagation: unix.MS_SHARED}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr); err != nil {
		return nil, fmt.Errorf("mount_setattr: %w", err)
	}
	return CopyTree(target)
}

// ShareMount gives a detached mount the attributes of one of the share's, and peers of
// its own.
func ShareMount(fd int, readOnly bool) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	if err == nil {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_SHARED})
	}
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// mountOverlay uses mount(2): fsconfig(2) takes 255 bytes of an option at most,
// and for overlays before Linux 6.5 none with a comma.
func mountOverlay(target string, b plan.Bind, mountLabel string) error {
	options := label.FormatMountLabel(b.Overlay, mountLabel)
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("overlay: %w: options of %d bytes, which mount(2) would cut off", unix.E2BIG, len(options))
	}
	if err := unix.Mount(b.Source, target, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay with options %q: %w", options, err)
	}
	return nil
}

// MakeMountPoint makes an empty directory or file unless there is one.
func MakeMountPoint(path string, file bool) error {
	if !file {
		err := os.Mkdir(path, 0o755)
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
