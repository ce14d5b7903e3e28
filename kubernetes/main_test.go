package kubernetes

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/isolate"
)

const (
	workVar = "KUBERNETES_WORK" // set in the suite: a directory on disk, removed at the end
	// longest is for all tests together. go test's own -timeout should be longer.
	longest = 2 * time.Hour
)

// Set before any test.
var (
	runtimes []ociRuntime
	cluster  *node
)

// An ociRuntime is a runtime under test, and the RuntimeClass of its name.
type ociRuntime struct{ name, bin string }

func (r ociRuntime) isVM() bool { return r.name == "boxlite" }

func TestMain(m *testing.M) {
	if os.Args[0] == isolate.StageName {
		isolate.Stage()
	}
	flag.Parse()
	if list := flag.Lookup("test.list"); list.Value.String() != "" {
		os.Exit(m.Run())
	}
	var err error
	if work := os.Getenv(workVar); work == "" {
		err = outside()
	} else {
		err = inside(m, work)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		os.Exit(1)
	}
}

// outside runs the suite in isolation, and removes what it leaves on disk.
func outside() (err error) {
	if err := checkMachine(); err != nil {
		return err
	}
	work, err := os.MkdirTemp("/var/tmp", "boxlite-kubernetes-") // on disk: containerd unpacks images there
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.Mkdir(filepath.Join(work, "images"), 0o755); err != nil {
		return err
	}
	if err := writeImages(filepath.Join(work, "images")); err != nil {
		return err
	}
	if err := linkDocker(filepath.Join(work, "images")); err != nil {
		return err
	}
	build := exec.Command("./build.sh")
	build.Stderr = os.Stderr
	programs, err := build.Output()
	if err != nil {
		return fmt.Errorf("build Kubernetes: %w", err)
	}
	if err := os.Symlink(strings.TrimSpace(string(programs)), filepath.Join(work, "bin")); err != nil {
		return err
	}
	return isolate.Job{
		Path: "/proc/self/exe", Args: os.Args, Env: []string{workVar + "=" + work}, OwnNetwork: true, Timeout: longest,
		Stdout: os.Stdout, Stderr: os.Stderr,
	}.Run()
}

// checkMachine names everything that is missing at once: tests that skip what they cannot run prove nothing.
func checkMachine() error {
	var missing []error
	if os.Geteuid() != 0 {
		missing = append(missing, errors.New("root is needed"))
	}
	for _, tool := range [][2]string{
		{"containerd", "containerd"},
		{"ctr", "containerd"},
		{"runc", "runc"},
		{"ip", "iproute2"},
		{"iptables", "iptables"},
		{"/usr/lib/cni/bridge", "containernetworking-plugins"},
		{busybox, "busybox-static"},
	} {
		if _, err := exec.LookPath(tool[0]); err != nil {
			missing = append(missing, fmt.Errorf("%s is missing (Debian: apt-get install %s)", tool[0], tool[1]))
		}
	}
	_, err := selectedRuntimes()
	return errors.Join(append(missing, err)...)
}

// selectedRuntimes reads E2E_RUNTIMES, a list, as the end-to-end tests do.
func selectedRuntimes() (rts []ociRuntime, err error) {
	names := os.Getenv("E2E_RUNTIMES")
	if names == "" {
		names = "runc,boxlite"
	}
	for name := range strings.SplitSeq(names, ",") {
		bin := "runc"
		switch name {
		case "runc":
		case "boxlite":
			if bin, err = filepath.Abs("../bin/boxlite"); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("E2E_RUNTIMES: unknown runtime %q", name)
		}
		if bin, err = exec.LookPath(bin); err != nil {
			return nil, fmt.Errorf("%s: %w (make builds boxlite)", name, err)
		}
		rts = append(rts, ociRuntime{name, bin})
	}
	return rts, nil
}

// inside runs the tests in a new cluster.
func inside(m *testing.M, work string) (err error) {
	if runtimes, err = selectedRuntimes(); err != nil {
		return err
	}
	// As on a node with systemd: mounts reach the containers that ask for it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	started := time.Now()
	cluster = &node{work: work}
	if err := cluster.start(); err != nil {
		for _, p := range cluster.programs {
			err = errors.Join(err, errors.New(p.lastWords()))
		}
		return errors.Join(err, cluster.stop())
	}
	fmt.Printf("the cluster is up after %v\n", time.Since(started).Round(time.Second))
	if m.Run() != 0 {
		err = errors.New("a scenario failed")
	}
	return errors.Join(err, cluster.stop())
}
