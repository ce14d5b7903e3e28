package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// programs are the workloads of images/programs, in the order in which each container runs them.
var programs = []string{
	"postgres", "mariadb", "redis", "sqlite", "nginx", "git", "tree", "npm", "pip", "gcc", "go", "java", "sshd", "rsync", "sshfs", "apt",
	"strace", "gdb", "bubblewrap",
}

// programsLimit is what all of them may take in one container.
const programsLimit = 40 * time.Minute

// programPrefix begins their rows.
const programPrefix = "program: "

// slowdown is the ratio to runc beyond which the documents owe a reason.
const slowdown = 20

// runPrograms runs the workloads in a container of each runtime, in turns. What a runtime cannot run has no row.
func runPrograms(h *host, n repetitions, r *result) error {
	if err := importImage("programs"); err != nil {
		return err
	}
	subjects := slices.DeleteFunc(slices.Clone(h.subjects), func(s subject) bool {
		return s.name != "runc" && s.name != "runsc" && s.name != warm
	})
	for i := range n.programs + 1 {
		round := subjects
		if i == 0 {
			round = subjects[:1] // it fills the host's page cache and does not count
		}
		for _, s := range round {
			j, err := programsContainer(h, n.scale, s, fmt.Sprintf("bench-programs-%s-%d", s.name, i))
			if err != nil {
				return fmt.Errorf("programs with %s: %w\n%s", s.name, err, j)
			}
			if i == 0 {
				continue
			}
			if err := r.addPrograms(s.name, j); err != nil {
				return fmt.Errorf("programs with %s: %w\n%s", s.name, err, j)
			}
		}
	}
	return nil
}

// addPrograms adds the times of one container.
func (r *result) addPrograms(runtime string, j *journal) error {
	for _, name := range programs {
		begin, end := "begin "+name, "end "+name
		times, err := j.times(begin, end)
		if err != nil {
			return err
		}
		if !j.has(end + " 0") {
			fmt.Printf("%s does not run %s:\n%s", runtime, name, j.between(begin, end))
			continue
		}
		r.add(programPrefix+name, runtime, seconds, times[1].Sub(times[0]).Seconds())
	}
	return nil
}

// programsContainer runs all workloads in a container by hand, to its end.
func programsContainer(h *host, scale int, s subject, id string) (j *journal, err error) {
	j = new(journal)
	image, err := imageLayer("programs")
	if err != nil {
		return j, err
	}
	dir := filepath.Join(h.work, id+"-files")
	root, unmount, err := layered(image, dir, "files")
	if err != nil {
		return j, err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	bundle, err := h.bundle(id, append([]string{"/workloads/run", strconv.Itoa(scale)}, programs...)...)
	if err != nil {
		return j, err
	}
	if err := programsSpec(bundle, root, filepath.Join(dir, "files")); err != nil {
		return j, err
	}
	cmd := exec.Command(s.bin, append(slices.Clone(s.flags), "run", "--bundle", bundle, id)...)
	cmd.Stdout, cmd.Stderr = j, j
	if err := cmd.Start(); err != nil {
		return j, err
	}
	limit := time.AfterFunc(programsLimit, func() { _ = s.detached("kill", id, "KILL") })
	defer limit.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) { // which of them failed the journal says
		return j, err
	}
	return j, nil
}

// programsSpec gives the bundle's container what docker run gives it, and what FUSE, debuggers and sandboxes take.
func programsSpec(bundle, root, work string) error {
	tree, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	goroot, err := output("go", "env", "GOROOT")
	if err != nil {
		return err
	}
	return editSpec(bundle, func(spec *specs.Spec) {
		spec.Root.Path = root
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" }) // runsc has no such
		for target, source := range map[string]string{"/work": work, "/workloads": filepath.Join(tree, "images/programs/workloads"), "/usr/local/go": goroot} {
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}})
		}
		caps := []string{
			"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
			"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE",
		}
		spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
		spec.Process.NoNewPrivileges = false
		spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 8192, Soft: 8192}}
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
		mode := os.FileMode(0o666)
		spec.Linux.Devices = append(spec.Linux.Devices, specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode})
		spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "rwm"})
	})
}

// programTable has a line for each program, with the medians and how they compare; it is empty if none was measured.
func (r *result) programTable() string {
	if r.row(programPrefix+programs[0], "runc") == nil {
		return ""
	}
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "program\trunc, s\tboxlite, s\trunsc, s\tboxlite / runc\trunsc / runc\t")
	for _, name := range programs {
		cells := []string{name}
		number := func(x float64) {
			if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
				cells = append(cells, "-")
				return
			}
			cells = append(cells, fmt.Sprintf("%.3g", x))
		}
		alone, vm, other := r.medianOf(programPrefix+name, "runc"), r.medianOf(programPrefix+name, warm), r.medianOf(programPrefix+name, "runsc")
		for _, x := range []float64{alone, vm, other, vm / alone, other / alone} {
			number(x)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t")+"\t")
	}
	w.Flush()
	return b.String()
}
