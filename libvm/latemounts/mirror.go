package latemounts

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/lockdown"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
)

// mostMounts bounds how many mounts the mirror carries over for one bind.
const mostMounts = 1024

// mirror carries mounts over. Its root holds the binds' copies and nothing else.
type mirror struct {
	conn  *net.UnixConn
	table *os.File // mountinfo of its own namespace
	binds []mirrored
	told  string // the last error
}

// mirrored is one bind.
type mirrored struct {
	bind
	source, share side
}

// side is one of the two copies of a bind.
type side struct {
	path string   // in the mirror's root
	root *os.File // O_PATH
}

// Run is the life of the mirror, the process that Start starts. It returns the status
// that the process shall exit with.
func Run(conn *net.UnixConn, _ *slog.Logger) int {
	m := &mirror{conn: conn}
	err := m.prepare()
	ready := event{}
	if err != nil {
		ready.Error = err.Error()
	}
	if tellErr := guestproto.WriteFrame(conn, ready); err != nil || tellErr != nil {
		return 1
	}
	if err := m.follow(); err != nil {
		m.tell(err)
		return 1
	}
	return 0
}

// tell says what goes wrong to whoever has started the mirror, which may have gone. What
// still does with the next change is not said again.
func (m *mirror) tell(err error) {
	if err == nil || err.Error() == m.told {
		return
	}
	m.told = err.Error()
	_ = guestproto.WriteFrame(m.conn, event{Error: m.told})
}

// prepare makes the mirror's root and gives up what the mirror does not need.
func (m *mirror) prepare() error {
	var cfg config
	if err := guestproto.ReadFrame(m.conn, guestproto.MaxRequest, &cfg); err != nil {
		return err
	}
	proc, err := rootfs.NewProc() // not possible later, see there
	if err != nil {
		return err
	}
	defer unix.Close(proc)
	if err := enterEmptyRoot(); err != nil {
		return err
	}
	for i, b := range cfg.Binds {
		bound := mirrored{bind: b}
		for j, s := range []*side{&bound.source, &bound.share} {
			mount := os.NewFile(uintptr(firstMount+2*i+j), b.Name)
			if err := errors.Join(s.place(fmt.Sprintf("/%d-%d", i, j), mount), mount.Close()); err != nil {
				return err
			}
		}
		m.binds = append(m.binds, bound)
	}
	name := strconv.Itoa(os.Getpid()) + "/mountinfo" // links of this proc lead nowhere
	table, err := unix.Openat(proc, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/" + name, Err: err}
	}
	m.table = os.NewFile(uintptr(table), name)
	return lockdown.EnterMounting()
}

// enterEmptyRoot gives the process, which is alone in its mount namespace, a tmpfs as
// root and lets go of all other mounts.
func enterEmptyRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount / private: %w", err)
	}
	const anywhere = "/proc" // a directory that is there
	if err := unix.Mount("tmpfs", anywhere, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=1m"); err != nil {
		return fmt.Errorf("mount an empty root: %w", err)
	}
	if err := unix.Chdir(anywhere); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // as rootfs.Enter
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// place puts a detached mount at path.
func (s *side) place(path string, mount *os.File) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", mount.Name(), err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	s.path, s.root = path, os.NewFile(uintptr(max(fd, 0)), path)
	return err
}

// leastInterval is the least between two looks at the mounts, whatever the host does.
const leastInterval = 20 * time.Millisecond

// follow carries over what has changed until the other end of the connection closes.
func (m *mirror) follow() error {
	raw, err := m.conn.SyscallConn()
	if err != nil {
		return err
	}
	var waitErr error
	for {
		m.sync()
		time.Sleep(leastInterval)
		err := raw.Control(func(conn uintptr) {
			waitErr = m.await(int32(conn))
		})
		if errors.Is(waitErr, io.EOF) {
			return nil
		}
		if err := errors.Join(err, waitErr); err != nil {
			return err
		}
	}
}

// await returns when the list of mounts has changed (POLLPRI, proc(5)), or with io.EOF
// when nobody is at the connection's other end.
func (m *mirror) await(conn int32) error {
	fds := []unix.PollFd{{Fd: conn}, {Fd: int32(m.table.Fd()), Events: unix.POLLPRI}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("poll: %w", err)
		case fds[0].Revents != 0:
			return io.EOF
		}
		return nil
	}
}

// sync carries over what has changed since the last time. What cannot be is told, and
// tried again with the next change.
func (m *mirror) sync() {
	var errs []error
	for i := range m.binds {
		errs = append(errs, m.syncBind(&m.binds[i]))
	}
	m.tell(errors.Join(errs...))
}

func (m *mirror) syncBind(b *mirrored) error {
	want, have, err := m.look(b)
	if err != nil {
		return err
	}
	surplus, missing := difference(want, have)
	var errs []error
	var gone []string
	for _, mount := range surplus {
		errs = append(errs, b.named(mount, b.share.unmount(mount)))
		gone = append(gone, path.Join(b.Share, mount.path))
	}
	if len(gone) > 0 {
		_ = guestproto.WriteFrame(m.conn, event{Gone: gone}) // as tell
	}
	if room := mostMounts - (len(have) - len(surplus)); len(missing) > room {
		errs = append(errs, fmt.Errorf("mount %s: %d mounts were made below it, the first %d show", b.Name, len(want), mostMounts))
		missing = missing[:max(room, 0)]
	}
	for _, mount := range missing {
		errs = append(errs, b.named(mount, b.carry(mount)))
	}
	return errors.Join(errs...)
}

// named says which mount an error is of. That another mount is in its place is none: the
// host's processes do not see it either, or what they see comes with the next table.
func (b *mirrored) named(mount submount, err error) error {
	if err == nil || errors.Is(err, errElsewhere) {
		return nil
	}
	return fmt.Errorf("mount %s: %w", path.Join(b.Name, mount.path), err)
}

// submount is a mount below one of a bind's copies.
type submount struct {
	shows
	id uint64 // of the mount (statx(2), STATX_MNT_ID)
}

// shows is what a submount shows, and where.
type shows struct {
	path   string // below the copy
	device string
	root   string // what of the file system is mounted
}

// look returns the submounts of both copies, parents first.
func (m *mirror) look(b *mirrored) (want, have []submount, err error) {
	if _, err := m.table.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	mounts, err := mountinfo.GetMountsFromReader(m.table, nil)
	if err != nil {
		return nil, nil, err
	}
	return seen(below(mounts, b.source.path)), below(mounts, b.share.path), nil
}

// below lists the mounts below dir. A mount on dir itself hides the bind from the
// host's processes and from nobody in the container.
func below(mounts []*mountinfo.Info, dir string) (out []submount) {
	for _, m := range mounts {
		if rel, ok := strings.CutPrefix(m.Mountpoint, dir+"/"); ok {
			out = append(out, submount{shows{rel, strconv.Itoa(m.Major) + ":" + strconv.Itoa(m.Minor), m.Root}, uint64(m.ID)})
		}
	}
	return out
}

// seen leaves out mounts that others lie upon: only the last at a place can be seen.
func seen(mounts []submount) (out []submount) {
	for i, m := range mounts {
		hidden := slices.ContainsFunc(mounts[i+1:], func(later submount) bool { return later.path == m.path })
		if !hidden {
			out = append(out, m)
		}
	}
	return out
}

// difference says what of have is not wanted, in the order to unmount it, and what is
// missing, in the order to mount it.
func difference(want, have []submount) (surplus, missing []submount) {
	missing = slices.Clone(want)
	for _, mount := range have {
		if i := slices.IndexFunc(missing, func(m submount) bool { return m.shows == mount.shows }); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		} else {
			surplus = append(surplus, mount)
		}
	}
	slices.Reverse(surplus)
	return surplus, missing
}

// errElsewhere is of a place where another mount is than the table had there: one lies
// upon it or upon its parents, or the next table will have it.
var errElsewhere = errors.New("another mount is there")

// walk opens a path on this side.
func (s *side) walk(path string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(s.root.Fd()), path, &how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// open opens a submount's root. The error matches errElsewhere if another mount is there.
func (s *side) open(mount submount) (*os.File, error) {
	f, err := s.walk(mount.path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, errElsewhere
	}
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if err == nil && (st.Mnt_id != mount.id || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0) {
		err = errElsewhere
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// carry mounts on the share's side what the source's side has there.
func (b *mirrored) carry(mount submount) error {
	from, err := b.source.open(mount)
	if err != nil {
		return err
	}
	fd, err := unix.OpenTree(int(from.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	_ = from.Close() // as long as it is open the host cannot unmount
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(fd)
	if err := rootfs.ShareMount(fd, b.ReadOnly); err != nil {
		return err
	}
	to, err := b.share.walk(mount.path)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := unix.MoveMount(fd, "", int(to.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// unmount takes a submount away.
func (s *side) unmount(mount submount) error {
	at, err := s.open(mount)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := unix.Fchdir(int(at.Fd())); err != nil {
		return err
	}
	err = unix.Unmount(".", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	return errors.Join(err, unix.Chdir("/"))
}
