package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary runs itself in stages, named by stageVar:
//
//	"" (go test) -> a lane's init, PID 1 of new pid, mount, network namespaces -> suite, which runs the tests it is given
//	                                                                                -> reaper, see reaper_test.go
//
// When go test's process ends in whatever way, each init is killed, and with it everything in its pid namespace.
const (
	stageVar = "E2E_STAGE"
	workVar  = "E2E_WORK" // the lane's directory on disk, removed at the end: images, bundles, logs
	tagVar   = "E2E_TAG"  // in the name of every cgroup and container of the lane
)

// Set by the suite stage, before any test.
var (
	workDir   string
	tag       string
	dockerBin string
	runtimes  []ociRuntime
	theDaemon *daemon
)

// An ociRuntime is a runtime under test.
type ociRuntime struct {
	name string
	bin  string
}

// isVM says whether a container of the runtime has its own kernel.
func (r ociRuntime) isVM() bool { return r.name == "boxlite" }

func TestMain(m *testing.M) {
	flag.Parse()
	var code int
	switch os.Getenv(stageVar) {
	case "":
		if list := flag.Lookup("test.list"); list != nil && list.Value.String() != "" {
			code = m.Run()
			break
		}
		code = outerStage()
	case "init":
		code = initStage()
	case "suite":
		code = suiteStage(m)
	case "reaper":
		code = reaperStage()
	}
	os.Exit(code)
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

// outerStage has the tests run in lanes, and removes everything after them.
func outerStage() int {
	if err := checkMachine(); err != nil {
		return complain(err)
	}
	n, err := laneCount()
	if err != nil {
		return complain(err)
	}
	sideBySide, last, err := orders()
	if err != nil {
		return complain(err)
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	runtime.LockOSThread() // Pdeathsig follows the thread
	n = max(1, min(n, len(sideBySide)))
	s, err := startLanes(n)
	if err != nil {
		return complain(err)
	}
	go func() { s.stop(fmt.Errorf("ended by %v", <-interrupted)) }()
	s.run(n, sideBySide)
	s.run(1, last)
	if n > 1 {
		s.runFailedAgain()
	}
	if err := s.end(); err != nil {
		fmt.Println("FAIL")
		return complain(err)
	}
	fmt.Println("PASS")
	return 0
}

// checkMachine names everything that is missing at once: a suite that skips what it cannot run proves nothing.
func checkMachine() error {
	var missing []error
	if os.Geteuid() != 0 {
		missing = append(missing, errors.New("root is needed"))
	}
	for _, tool := range [][2]string{
		{dockerPath(), "docker.io"},
		{"dockerd", "docker.io"},
		{"containerd", "containerd"},
		{"ctr", "containerd"},
		{"runc", "runc"},
		{"ip", "iproute2"},
		{"tc", "iproute2"},
		{"iptables", "iptables"},
		{"unshare", "util-linux"},
		{"go", "golang"},
		{"podman", "podman"},
		{"conmon", "conmon"},
		{"/usr/lib/podman/netavark", "netavark"},
		{"/usr/lib/podman/aardvark-dns", "aardvark-dns"},
		{"slirp4netns", "slirp4netns"},
		{"pasta", "passt"},
		{"newuidmap", "uidmap"},
		{"catatonit", "catatonit"},
	} {
		if _, err := exec.LookPath(tool[0]); err != nil {
			missing = append(missing, fmt.Errorf("%s is missing (Debian: apt-get install %s)", tool[0], tool[1]))
		}
	}
	if _, err := os.Stat(busyboxPath); err != nil {
		missing = append(missing, fmt.Errorf("%w (Debian: apt-get install busybox-static)", err))
	}
	rts, err := selectedRuntimes()
	if err != nil {
		missing = append(missing, err)
	}
	for _, rt := range rts {
		if out, err := exec.Command(rt.bin, "--version").CombinedOutput(); err != nil {
			missing = append(missing, fmt.Errorf("%s --version: %w: %s (make builds it; E2E_RUNTIMES=runc leaves it out)", rt.bin, err, out))
		}
	}
	return errors.Join(missing...)
}

// dockerPath is the client: Debian's, as the private daemon is Debian's, unless DOCKER names another.
func dockerPath() string {
	if p := os.Getenv("DOCKER"); p != "" {
		return p
	}
	return "/usr/bin/docker"
}

// selectedRuntimes reads E2E_RUNTIMES (a list; default runc,boxlite) and BOXLITE (default: bin/boxlite of this tree).
func selectedRuntimes() ([]ociRuntime, error) {
	names := os.Getenv("E2E_RUNTIMES")
	if names == "" {
		names = "runc,boxlite"
	}
	var rts []ociRuntime
	for name := range strings.SplitSeq(names, ",") {
		switch name {
		case "runc":
			bin, err := exec.LookPath("runc")
			if err != nil {
				return nil, err
			}
			rts = append(rts, ociRuntime{name: name, bin: bin})
		case "boxlite":
			bin := os.Getenv("BOXLITE")
			if bin == "" {
				bin = "../bin/boxlite"
			}
			bin, err := filepath.Abs(bin)
			if err != nil {
				return nil, err
			}
			rts = append(rts, ociRuntime{name: name, bin: bin})
		default:
			return nil, fmt.Errorf("E2E_RUNTIMES: unknown runtime %q", name)
		}
	}
	return rts, nil
}

// initStage is PID 1: it makes the host that the tests see, runs them, and reaps what they leave.
func initStage() int {
	if err := makeHost(); err != nil {
		return complain(err)
	}
	suite := exec.Command("/proc/self/exe", os.Args[1:]...)
	suite.Env = append(os.Environ(), stageVar+"=suite")
	suite.Stdin, suite.Stdout, suite.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := suite.Start(); err != nil {
		return complain(err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return complain(fmt.Errorf("wait: %w", err))
		case pid == suite.Process.Pid && status.Signaled():
			return complain(fmt.Errorf("the tests were killed: %v", status.Signal()))
		case pid == suite.Process.Pid:
			return status.ExitStatus()
		}
	}
}

// makeHost gives the namespaces a /proc and /sys that fit them, a loopback, and empty directories for what is temporary.
func makeHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	cgroups, err := unix.Open("/sys/fs/cgroup", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	needed, err := openNeeded()
	if err != nil {
		return err
	}
	for _, m := range []struct{ fstype, target, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/dev/shm", "mode=1777"},
	} {
		if err := unix.Mount(m.fstype, m.target, m.fstype, 0, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", cgroups), "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind cgroups: %w", err)
	}
	for _, dir := range needed {
		if err := dir.show(); err != nil {
			return err
		}
	}
	// The default state roots may stay, empty; what is in them may not.
	return sh("mkdir /run/runc /run/boxlite && ip link set lo up && sysctl -qw net.ipv4.ip_forward=1")
}

// A neededDir is a directory of the machine that the tests read.
type neededDir struct {
	path string
	fd   int
}

// openNeeded opens this tree, the caches and the runtimes' directories, before makeHost hides what is around them: a clone
// below /tmp.
func openNeeded() ([]neededDir, error) {
	tree, err := filepath.Abs("..")
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	rts, err := selectedRuntimes()
	if err != nil {
		return nil, err
	}
	paths := []string{tree, cache}
	for _, rt := range rts {
		paths = append(paths, filepath.Dir(rt.bin))
	}
	var needed []neededDir
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a cache that nothing is in
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		needed = append(needed, neededDir{path, fd})
	}
	return needed, nil
}

// show binds the directory to its path if that leads nowhere any more, and closes it.
func (d neededDir) show() error {
	defer unix.Close(d.fd)
	if _, err := os.Stat(d.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(d.path, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", d.fd), d.path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", d.path, err)
	}
	return nil
}

// suiteStage runs the tests, with a dockerd for all of them.
func suiteStage(m *testing.M) int {
	workDir, tag, dockerBin = os.Getenv(workVar), os.Getenv(tagVar), dockerPath()
	for _, v := range []string{stageVar, workVar, tagVar, "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_BUILDKIT"} {
		if err := os.Unsetenv(v); err != nil {
			return complain(err)
		}
	}
	var err error
	if runtimes, err = selectedRuntimes(); err != nil {
		return complain(err)
	}
	if text := os.Getenv("E2E_DEADLINE"); text != "" {
		if deadline, err = time.ParseDuration(text); err != nil {
			return complain(fmt.Errorf("E2E_DEADLINE: %w", err))
		}
	}
	// The few cases that run side by side wait more than they compute.
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set("16"); err != nil {
			return complain(err)
		}
	}
	theDaemon = newDaemon("main", 1)
	if err := theDaemon.start(); err != nil {
		return complain(err)
	}
	if err := theDaemon.importImage(); err != nil {
		return complain(err)
	}
	return runLane(m)
}

// sh runs a script that prepares something.
func sh(script string) error {
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// taggedCgroups lists the directories below /sys/fs/cgroup that have tag in their name or in that of a parent, children first.
func taggedCgroups(tag string) []string {
	var dirs []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, tag) {
			dirs = append(dirs, path)
		}
		return nil // a group may go away meanwhile
	})
	slices.Reverse(dirs)
	return dirs
}
