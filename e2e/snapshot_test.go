package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// A snapshot is what a container may leave on the machine, as one line each: processes, mounts, links, tc objects,
// cgroups, state directories, sockets and temporary files. The machine is the namespaces that the tests run in.
type snapshot map[string]bool

func takeSnapshot() snapshot {
	s := snapshot{}
	s.addProcesses()
	s.addMounts()
	s.addLinks()
	for _, dir := range taggedCgroups(tag) {
		s["cgroup "+dir] = true
	}
	s.addFiles("/run", "/tmp", "/dev/shm")
	return s
}

// leftovers waits until nothing is there that was not in s, for a while, as dockerd and the kernel take things down
// after docker has answered. It returns what stays.
func (s snapshot) leftovers() []string {
	for giveUp := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var left []string
		for _, line := range slices.Sorted(maps.Keys(takeSnapshot())) {
			if !s[line] {
				left = append(left, line)
			}
		}
		if len(left) == 0 || time.Now().After(giveUp) {
			return left
		}
	}
}

// daemonCommands are not the container's: dockerd and containerd come back with other pids in cases that restart them.
var daemonCommands = []string{"dockerd", "containerd"}

func (s snapshot) addProcesses() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if filepath.Base(dir) == strconv.Itoa(os.Getpid()) {
			continue
		}
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil || slices.Contains(daemonCommands, strings.TrimSpace(string(comm))) {
			continue
		}
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		if len(cmdline) == 0 {
			cmdline = append([]byte("zombie of "), comm...)
		}
		s[fmt.Sprintf("process %s: %s", filepath.Base(dir), strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")))] = true
	}
}

func (s snapshot) addMounts() {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		panic(err)
	}
	for _, m := range mounts {
		if ok, _ := filepath.Match("/run/dockerd-*/netns/default", m.Mountpoint); ok {
			continue // the host's, which dockerd keeps for the next container with --network host
		}
		s[fmt.Sprintf("mount %s of %s %s %s", m.Mountpoint, m.FSType, m.Source, m.VFSOptions)] = true
	}
}

func (s snapshot) addLinks() {
	for _, query := range [][]string{
		{"ip", "-o", "link", "show"},
		{"tc", "qdisc", "show"},
		{"ip", "netns", "list"},
	} {
		out, err := exec.Command(query[0], query[1:]...).CombinedOutput()
		if err != nil {
			panic(fmt.Sprintf("%v: %v: %s", query, err, out))
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if query[1] == "-o" {
				fields = fields[:2] // index and name; the state of a bridge changes
			}
			s[query[0]+" "+strings.Join(fields, " ")] = true
		}
	}
	for _, name := range s.linkNames() {
		out, err := exec.Command("tc", "filter", "show", "dev", name, "ingress").CombinedOutput()
		if err == nil && len(out) > 0 {
			s["tc filter of "+name+": "+string(out)] = true
		}
	}
}

func (s snapshot) linkNames() []string {
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		panic(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// addFiles walks the places where a runtime keeps what does not outlive the machine. All of them are tmpfs of this run.
func (s snapshot) addFiles(roots ...string) {
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // gone meanwhile
			}
			if outliveContainers(path) {
				return fs.SkipDir
			}
			s["file "+path] = true
			if path != root && d.IsDir() && isMountPoint(path) {
				return fs.SkipDir // a container's file system; the mount is a line of its own
			}
			return nil
		})
	}
}

// outliveContainers names what is not a container's: dockerd removes the mount points of network namespaces once a minute (while
// mounted they are lines of their own) and has a new socket after each start, umount has a table, podman forgets the
// file of slirp4netns' socket and how a container ended that did not start, and templates and turns stay for the next container.
func outliveContainers(path string) bool {
	for _, pattern := range []string{
		"/run/dockerd-*/netns", "/run/dockerd-*/libnetwork", "/run/mount", "/run/libpod/*.net", "/run/libpod/exits/*",
		"/run/user/*/libpod/tmp/*.net", "/run/user/*/libpod/tmp/exits/*", "/run/boxlite-templates", "/run/user/*/boxlite-templates",
		"/run/boxlite-turns", "/run/user/*/boxlite-turns",
	} {
		if ok, _ := filepath.Match(pattern, path); ok {
			return true
		}
	}
	return false
}

func isMountPoint(path string) bool {
	here, err := os.Stat(path)
	if err != nil {
		return false
	}
	parent, err := os.Stat(filepath.Dir(path))
	return err == nil && here.Sys().(*syscall.Stat_t).Dev != parent.Sys().(*syscall.Stat_t).Dev
}

// The check that every case relies on must see each kind of thing that it claims to see.
func TestSnapshotSeesLeftovers(t *testing.T) {
	for name, make := range map[string]struct{ do, undo string }{
		"process ":       {"sleep 1000 >/dev/null 2>&1 & echo $! >/tmp/pid", "kill $(cat /tmp/pid); rm /tmp/pid"},
		"mount ":         {"mkdir /tmp/m; mount -t tmpfs none /tmp/m", "umount /tmp/m; rmdir /tmp/m"},
		"ip ":            {"ip link add bxleft type bridge", "ip link del bxleft"},
		"tc qdisc":       {"tc qdisc add dev lo ingress", "tc qdisc del dev lo ingress"},
		"tc filter":      {"tc qdisc add dev lo ingress; tc filter add dev lo ingress protocol all u32 match u8 0 0 flowid 1:1", "tc qdisc del dev lo ingress"},
		"cgroup ":        {"mkdir -p /sys/fs/cgroup/pids/" + tag + "/left", "rmdir /sys/fs/cgroup/pids/" + tag + "/left"},
		"file /run/box":  {"mkdir -p /run/boxlite/left", "rmdir /run/boxlite/left"},
		"file /tmp/left": {"touch /tmp/left", "rm /tmp/left"},
	} {
		before := takeSnapshot()
		if err := sh(make.do); err != nil {
			t.Fatal(err)
		}
		found := false
		for line := range takeSnapshot() {
			found = found || !before[line] && strings.HasPrefix(line, name)
		}
		if !found {
			t.Errorf("after %q the snapshot has no new line %q", make.do, name)
		}
		if err := sh(make.undo); err != nil {
			t.Fatal(err)
		}
		if left := before.leftovers(); left != nil {
			t.Errorf("after %q is left: %q", make.undo, left)
		}
	}
}
