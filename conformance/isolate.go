package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// A program runs in cgroups of its own and, in these, in two stages of this program:
//
//	init     PID 1 of new pid, mount and ipc namespaces, with an empty /run and /tmp
//	cgroups  in a cgroup namespace: "/" of every hierarchy is the program's own; becomes the program
//
// The suite's fixed names (cgroups, the runtimes' default state roots) thus never meet another run's, and what a
// program leaves behind ends with its PID 1. The network namespace is the machine's for the OCI suite, which reads its
// interfaces, and a new one for critest, whose bridge and ports are then its own.
const stageName = "conformance-stage"

// exitIsolation is the status of a stage that failed before the program ran.
const exitIsolation = 125

var errTimeout = errors.New("took too long")

var runs atomic.Int64

// A job is a program to be isolated.
type job struct {
	path       string
	args       []string // with args[0]
	dir        string
	env        []string // beside the caller's
	ownNetwork bool
	timeout    time.Duration
}

// isolated runs one program and returns what it wrote to stdout and stderr. The error is of type *exec.ExitError if the
// program said so itself.
func isolated(j job) (stdout, stderr []byte, err error) {
	tag := fmt.Sprintf("boxlite-conformance-%d-%d", os.Getpid(), runs.Add(1))
	cgroups, err := makeCgroups(tag)
	defer func() { err = errors.Join(err, removeCgroups(cgroups)) }()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), j.timeout, errTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = slices.Concat([]string{stageName, "init", strings.Join(cgroups, ":"), j.path}, j.args)
	cmd.Dir = j.dir
	cmd.Env = slices.Concat(os.Environ(), j.env, []string{"TMPDIR=/tmp"})
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if j.ownNetwork {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.Bytes(), errs.Bytes(), err
}

func stage(name string, args []string) error {
	switch name {
	case "init":
		return initStage(strings.Split(args[0], ":"), args[1:])
	case "cgroups":
		return cgroupStage(args[0], args[1:])
	case criStageName:
		return criStage(args)
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
	cmd.Args = append([]string{stageName, "cgroups"}, program...)
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
	hierarchies, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		// The same file system cannot be mounted on itself.
		if err := unix.Unmount(h.dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", h.dir, err)
		}
		if err := unix.Mount("cgroup", h.dir, h.fstype, 0, h.options); err != nil {
			return fmt.Errorf("mount %s: %w", h.dir, err)
		}
	}
	return syscall.Exec(path, args, os.Environ())
}

// A hierarchy is a mount of a cgroup hierarchy, v1 or v2. Several mounts may be of one.
type hierarchy struct {
	device  uint64 // which hierarchy it is
	dir     string
	fstype  string
	options string // for mount(2)
}

// cgroupMounts are those that can be reached: one that another mount covers is nobody's to see.
func cgroupMounts() ([]hierarchy, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	for _, m := range mounts {
		h := hierarchy{device: unix.Mkdev(uint32(m.Major), uint32(m.Minor)), dir: m.Mountpoint, fstype: m.FSType}
		var st unix.Stat_t
		if err := unix.Stat(h.dir, &st); err != nil || st.Dev != h.device {
			continue
		}
		if h.fstype == "cgroup" {
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
	hierarchies, err := cgroupMounts()
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
