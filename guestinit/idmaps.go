package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// idMaps are the mappings of the container's user namespace. Without one they
// are empty and map every id to itself.
type idMaps struct {
	uids, gids []specs.LinuxIDMapping
}

func (m idMaps) present() bool { return len(m.uids)+len(m.gids) > 0 }

// uid and gid give the guest's id for one of the container's. An id that is
// not mapped becomes the overflow id.
func (m idMaps) uid(id uint32) int { return mapID(m.uids, id) }
func (m idMaps) gid(id uint32) int { return mapID(m.gids, id) }

const overflowID = 65534

func mapID(maps []specs.LinuxIDMapping, id uint32) int {
	if len(maps) == 0 {
		return int(id)
	}
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return int(m.HostID + (id - m.ContainerID))
		}
	}
	return overflowID
}

// chown gives path to a user and group of the container, if that is not what a
// file made by guestinit has anyway.
func (m idMaps) chown(path string, uid, gid uint32) error {
	if m.uid(uid) == 0 && m.gid(gid) == 0 {
		return nil
	}
	return os.Lchown(path, m.uid(uid), m.gid(gid))
}

func (m idMaps) chownFile(f *os.File) error {
	if !m.present() {
		return nil
	}
	return f.Chown(m.uid(0), m.gid(0))
}

// write gives a new user namespace, that of the process, its mappings.
func (m idMaps) write(pid int) error {
	for file, maps := range map[string][]specs.LinuxIDMapping{"uid_map": m.uids, "gid_map": m.gids} {
		if err := writeFile(fmt.Sprintf("/proc/%d/%s", pid, file), formatIDMap(maps)); err != nil {
			return err
		}
	}
	return nil
}

func formatIDMap(maps []specs.LinuxIDMapping) string {
	var text strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&text, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return text.String()
}

// newUserNamespace makes a user namespace with the given mappings and nothing in
// it: the process that has to be in it for a moment is gone again.
func newUserNamespace(children *reaper, maps idMaps) (*os.File, error) {
	p, err := newProcess("", scriptSize(nil, nil))
	if err != nil {
		return nil, err
	}
	defer p.kill()
	p.script.await()
	if err := p.fork(children, unix.CLONE_NEWUSER, -1); err != nil {
		return nil, err
	}
	if err := maps.write(p.pid); err != nil {
		return nil, err
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", p.pid))
}

// mapIDs makes p an id-mapped mount: with its own mappings if it has any,
// otherwise with those of the container.
func (c *container) mapIDs(p *preparedMount) error {
	maps := idMaps{p.spec.UIDMappings, p.spec.GIDMappings}
	if !maps.present() {
		maps = c.ids
	}
	if !maps.present() {
		return fmt.Errorf("id-mapped mount without mappings")
	}
	holder, err := newUserNamespace(c.children, maps)
	if err != nil {
		return err
	}
	defer holder.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(holder.Fd())}
	flags := uint(unix.AT_EMPTY_PATH)
	if p.plan.idmap&unix.MS_REC != 0 {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(p.fd, "", flags, &attr); err != nil {
		return fmt.Errorf("map ids (not every file system can; virtio-fs needs a newer kernel): %w", err)
	}
	return nil
}
