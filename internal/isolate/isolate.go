// Package isolate runs a program where it and what it starts meet no other run's: in namespaces and cgroups of its own.
// What the program leaves behind ends with it.
package isolate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A program runs in cgroups of its own and, in these, in two stages of the caller's program:
//
//	init     PID 1 of new pid, mount and ipc namespaces, with an empty /run and /tmp
//	cgroups  in a cgroup namespace: "/" of every hierarchy is the program's own; becomes the program
//
// Fixed names (cgroups, the runtimes' default state roots) thus never meet another run's, and what a program leaves
// behind ends with its PID 1.

// StageName is the caller's os.Args[0] in a stage. The caller's main then has nothing to do but call Stage.
const StageName = "isolate-stage"

// exitIsolation is the status of a stage that failed before the program ran.
const exitIsolation = 125

// ErrTimeout is the error of a program that took longer than it may.
var ErrTimeout = errors.New("took too long")

var runs atomic.Int64

// A Job is a program to be isolated.
type Job struct {
	Path string
	Args []string // with Args[0]
	Dir  string
	Env  []string // beside the caller's
	// OwnNetwork gives the program a network namespace without any interface that is up. Otherwise it has the caller's.
	OwnNetwork bool
	Timeout    time.Duration
	// Stdout and Stderr are as those of exec.Cmd.
	Stdout, Stderr io.Writer
}

// Run runs the program. The error is of type *exec.ExitError if the program said so itself.
func (j Job) Run() (err error) {
	tag := fmt.Sprintf("boxlite-isolated-%d-%d", os.Getpid(), runs.Add(1))
	cgroups, err := makeCgroups(tag)
	defer func() { err = errors.Join(err, removeCgroups(cgroups)) }()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), j.Timeout, ErrTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = slices.Concat([]string{StageName, "init", strings.Join(cgroups, ":"), j.Path}, j.Args)
	cmd.Dir = j.Dir
	cmd.Env = slices.Concat(os.Environ(), j.Env, []string{"TMPDIR=/tmp"})
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if j.OwnNetwork {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	cmd.Stdout, cmd.Stderr = j.Stdout, j.Stderr
	err = cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// Stage does the work of a stage, and does not return.
func Stage() {
	err := stage(os.Args[1], os.Args[2:])
	fmt.Fprintln(os.Stderr, "isolate:", err)
	os.Exit(exitIsolation)
}

func stage(name string, args []string) error {
	switch name {
	case "init":
		return initStage(strings.Split(args[0], ":"), args[1:])
	case "cgroups":
		return cgroupStage(args[0], args[1:])
	}
	return fmt.Errorf("no stage %q", name)
}

func initStage(cgroups, program []string) error {
	for _, dir := range cgroups {
		// 0 is the writer: this process's pid is another outside.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ fstype, dir, options string }{
		{"proc", "/proc", ""},
		{"tmpfs", "/run", "mode=0755"},
		{"tmpfs", "/tmp", "mode=1777"},
	} {
		if err := unix.Mount(m.fstype, m.dir, m.fstype, unix.MS_NOSUID|unix.MS_NODEV, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{StageName, "cgroups"}, program...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWCGROUP}
	if err := cmd.Start(); err != nil {
		return err
	}
	os.Exit(reap(cmd.Process.Pid))
	return nil
}

// reap waits for every process that becomes PID 1's child until pid ends, and returns pid's exit code.
func reap(pid int) int {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return exitIsolation
		case ended == pid && status.Signaled():
			return 128 + int(status.Signal())
		case ended == pid:
			return status.ExitStatus()
		}
	}
}

func cgroupStage(path string, args []string) error {
	hierarchies, err := CgroupMounts()
	if err != nil {
		return err
	}
	covered, err := ownCgroupRoot()
	if err != nil {
		return fmt.Errorf("%s: %w", cgroupRoot, err)
	}
	for _, h := range hierarchies {
		if covered && strings.HasPrefix(h.dir, cgroupRoot+"/") {
			err = os.Mkdir(h.dir, 0o755)
		} else { // the same file system cannot be mounted on itself
			err = unix.Unmount(h.dir, unix.MNT_DETACH)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.dir, err)
		}
		if err := unix.Mount("cgroup", h.dir, h.FSType, 0, h.options); err != nil {
			return fmt.Errorf("mount %s: %w", h.dir, err)
		}
	}
	return syscall.Exec(path, args, os.Environ())
}

// cgroupRoot is where the hierarchies are. With version 1 that is a tmpfs, which anybody may write to.
const cgroupRoot = "/sys/fs/cgroup"

// ownCgroupRoot covers that tmpfs by another, with the links that it has. It says whether there is one.
func ownCgroupRoot() (covered bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		return false, err
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return false, err
	}
	links := map[string]string{}
	for _, e := range entries {
		if path := filepath.Join(cgroupRoot, e.Name()); e.Type() == fs.ModeSymlink {
			if links[path], err = os.Readlink(path); err != nil {
				return false, err
			}
		}
	}
	if err := unix.Mount("tmpfs", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return false, err
	}
	for path, target := range links {
		if err := os.Symlink(target, path); err != nil {
			return false, err
		}
	}
	return true, nil
}

// A Hierarchy is a mount of a cgroup hierarchy, v1 or v2. Several mounts may be of one.
type Hierarchy struct {
	// FSType is cgroup, for version 1, or cgroup2.
	FSType string

	device  uint64 // which hierarchy it is
	dir     string
	options string // for mount(2)
}

// CgroupMounts are those that can be reached: one that another mount covers is nobody's to see.
func CgroupMounts() ([]Hierarchy, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var found []Hierarchy
	for _, m := range mounts {
		h := Hierarchy{device: unix.Mkdev(uint32(m.Major), uint32(m.Minor)), dir: m.Mountpoint, FSType: m.FSType}
		var st unix.Stat_t
		if err := unix.Stat(h.dir, &st); err != nil || st.Dev != h.device {
			continue
		}
		if h.FSType == "cgroup" {
			h.options = strings.TrimPrefix(m.VFSOptions, "rw,")
			if strings.HasPrefix(h.options, "name=") || strings.Contains(h.options, ",name=") {
				h.options = "none," + h.options[strings.Index(h.options, "name="):]
			}
		}
		found = append(found, h)
	}
	return found, nil
}

// makeCgroups makes a cgroup in the root of every hierarchy and returns their directories, also those before an error.
func makeCgroups(tag string) (dirs []string, err error) {
	hierarchies, err := CgroupMounts()
	if err != nil {
		return nil, err
	}
	made := map[uint64]bool{}
	for _, h := range hierarchies {
		if made[h.device] {
			continue // it is mounted a second time, in a chroot's /sys perhaps
		}
		made[h.device] = true
		dir := filepath.Join(h.dir, tag)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return dirs, err
		}
		dirs = append(dirs, dir)
		// A cpuset of cgroup v1 begins empty, and takes no process then.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h.dir, file))
			if err != nil {
				continue // another hierarchy
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil {
				return dirs, err
			}
		}
	}
	return dirs, nil
}

// removeCgroups removes the directories with all cgroups below them.
func removeCgroups(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		var below []string
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				below = append(below, path)
			}
			return err
		})
		errs = append(errs, err)
		for _, cgroup := range slices.Backward(below) {
			errs = append(errs, os.Remove(cgroup))
		}
	}
	return errors.Join(errs...)
}
