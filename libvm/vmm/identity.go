package vmm

import (
	"fmt"
	"os"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// identity is a user and a group without supplementary ones.
type identity struct{ uid, gid int }

// firstQEMU is the first of the ids that QEMUs have for themselves, above all that
// distributions give to users, services and containers. The host's pid of the
// process that starts it is added: no other live VM has the same.
const firstQEMU = 0x7f000000

// qemuIdentity is whom the QEMU that this process starts shall run as: nil for
// whoever this process is, where there is nobody else to be. That is so for an
// ordinary user without Podman, who is the only one in the user namespace.
func qemuIdentity() (*identity, error) {
	able, err := maySwitch()
	if err != nil || !able {
		return nil, err
	}
	pid, err := hostPid()
	if err != nil {
		return nil, err
	}
	uids, err := user.CurrentProcessUIDMap()
	if err != nil {
		return nil, err
	}
	gids, err := user.CurrentProcessGIDMap()
	if err != nil {
		return nil, err
	}
	uid, gid := pickID(pid, uids), pickID(pid, gids)
	if uid == 0 || gid == 0 {
		return nil, nil
	}
	return &identity{uid, gid}, nil
}

// pickID picks an id for the QEMU that the process pid starts, of those that a user
// namespace has; zero if it has none. Where none is as high as firstQEMU it is the
// last one: not root's, who is the user outside, nor one that files of an image
// have. VMs of a user then share it, which gives none of them more than root had.
func pickID(pid int, mapped []user.IDMap) int {
	own, best := int64(firstQEMU+pid), int64(0)
	for _, m := range mapped {
		last := m.ID + m.Count - 1
		if m.ID <= own && own <= last {
			return int(own)
		}
		best = max(best, last)
	}
	return int(best)
}

// maySwitch says whether the process has what it takes to start another one as
// somebody else, and to end that again.
func maySwitch() (bool, error) {
	var sets [2]unix.CapUserData // of two times 32
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]); err != nil {
		return false, fmt.Errorf("capget: %w", err)
	}
	const needed = 1<<unix.CAP_CHOWN | 1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID
	return sets[0].Effective&needed == needed, nil
}

// as runs f with the calling thread's power over files replaced by that of who. The
// thread must be locked to its goroutine for good: it loses its supplementary
// groups, which the runtime cannot see.
func (who identity) as(f func()) error {
	// unix.Setgroups is for all threads.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	fsuid, fsgid := os.Geteuid(), os.Getegid()
	// Neither call reports a failure; in one that has failed root is looked at, who may more.
	if err := unix.Setfsgid(who.gid); err != nil {
		return fmt.Errorf("setfsgid: %w", err)
	}
	if err := unix.Setfsuid(who.uid); err != nil {
		return fmt.Errorf("setfsuid: %w", err)
	}
	defer func() {
		_ = unix.Setfsuid(fsuid)
		_ = unix.Setfsgid(fsgid)
	}()
	f()
	return nil
}
