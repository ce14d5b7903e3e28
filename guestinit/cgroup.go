package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// containersCgroup is the parent of the containers' cgroups. guestinit
	// itself stays in the root, so that no container's limit holds it back.
	containersCgroup = cgroupRoot + "/containers"
	containerCgroup  = containersCgroup + "/container" // of the first
)

// reservedTasks is the number of the kernel's tasks that a container cannot have.
// guestinit must be able to make threads and to fork while a fork bomb has all it
// can get.
const reservedTasks = 256

// tasksForMemory is how many tasks the VM's memory is enough for, which is what
// threads-max says until setKernelParameters.
func tasksForMemory() (int, error) {
	text, err := readFile("/proc/sys/kernel/threads-max")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(text))
}

// setupCgroups makes the parent of the containers' cgroups, with every controller. Of the
// tasks that the memory is enough for, it keeps some for guestinit.
func setupCgroups(tasks int) error {
	if err := enableControllers(cgroupRoot); err != nil {
		return err
	}
	if err := os.Mkdir(containersCgroup, 0o755); err != nil {
		return err
	}
	if tasks > 2*reservedTasks {
		if err := writeFile(containersCgroup+"/pids.max", strconv.Itoa(tasks-reservedTasks)); err != nil {
			return err
		}
	}
	return enableControllers(containersCgroup)
}

// enableControllers gives a cgroup's children every controller that it has.
func enableControllers(dir string) error {
	text, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return err
	}
	controllers := strings.Fields(string(text))
	if len(controllers) == 0 {
		return nil
	}
	return writeFile(dir+"/cgroup.subtree_control", "+"+strings.Join(controllers, " +"))
}

// A cgroup is that of a container, or one below it.
type cgroup struct {
	dir string
	fd  int
}

// newCgroup makes a container's cgroup.
func newCgroup(dir string) (*cgroup, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	return openCgroup(dir)
}

func openCgroup(dir string) (*cgroup, error) {
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &cgroup{dir: dir, fd: fd}, nil
}

func (g *cgroup) close() { _ = unix.Close(g.fd) }

// apply writes the settings in order.
func (g *cgroup) apply(settings []cgroupSetting) error {
	for _, s := range settings {
		if strings.Contains(s.file, "/") {
			return fmt.Errorf("cgroup file %q: not a file name", s.file)
		}
		err := writeFile(filepath.Join(g.dir, s.file), s.value)
		if err != nil && !(s.optional && errors.Is(err, os.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// checkMemory refuses a limit that is below what is in use, where that is asked for
// (runtime-spec, checkBeforeUpdate), after the kernel has taken back what it can.
func (g *cgroup) checkMemory(m *specs.LinuxMemory) error {
	if m.CheckBeforeUpdate == nil || !*m.CheckBeforeUpdate || m.Limit == nil || *m.Limit <= 0 {
		return nil
	}
	used, err := g.memoryUsed()
	if err != nil || used <= *m.Limit {
		return err
	}
	_ = writeFile(g.dir+"/memory.reclaim", strconv.FormatInt(used-*m.Limit, 10)) // fails where less could be had
	if used, err = g.memoryUsed(); err != nil || used <= *m.Limit {
		return err
	}
	return fmt.Errorf("unable to set memory limit to %d (current usage: %d)", *m.Limit, used)
}

// memoryUsed is in bytes.
func (g *cgroup) memoryUsed() (int64, error) {
	text, err := readFile(g.dir + "/memory.current")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(text), 10, 64)
}

// delegate gives the cgroup to the root of a container's user namespace, as
// far as the kernel documents for delegation.
func (g *cgroup) delegate(ids idMaps) error {
	if !ids.present() {
		return nil
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		if err := ids.chown(filepath.Join(g.dir, name), 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// walk calls f for the cgroup and each below it, parents first.
func (g *cgroup) walk(f func(dir string)) error {
	return filepath.WalkDir(g.dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist) && path != g.dir:
			return nil // removed meanwhile
		case err != nil:
			return err
		case entry.IsDir():
			f(path)
		}
		return nil
	})
}

// pids are the processes in the cgroup and below, by guestinit's pids.
func (g *cgroup) pids() (pids []int, err error) {
	err = g.walk(func(dir string) {
		text, err := os.ReadFile(dir + "/cgroup.procs")
		if err != nil {
			return // a threaded or a removed cgroup
		}
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	})
	return pids, err
}

// kill sends SIGKILL to every process in the cgroup and below, even to those
// that are being forked.
func (g *cgroup) kill() error { return writeFile(g.dir+"/cgroup.kill", "1") }

// cgroupOf returns the directory of the cgroup that a process is in.
func cgroupOf(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	path, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "0::")
	if !ok {
		return "", fmt.Errorf("/proc/%d/cgroup: %q is not the unified hierarchy", pid, text)
	}
	return filepath.Join(cgroupRoot, path), nil
}
