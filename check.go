package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/moby/sys/userns"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/hostnet"
	"github.com/boxlite-oci/boxlite/libvm/parts"
)

var checkCommand = &cli.Command{
	Name:  "check",
	Usage: "say what this machine has and lacks for running containers",
	Description: `Prints one line for each thing that a container needs, and what to install
where something is missing. The exit status is 1 if no container could run.`,
	Before: takes(0, 0),
	Action: func(c *cli.Context) error {
		return report(c.App.Writer, machineChecks(partOptions(c), c.String("accel")))
	},
}

// check is one line of the report.
type check struct {
	what string
	// look returns what was found. An error means that a container cannot
	// run, and says what to do about it.
	look func() (string, error)
}

func machineChecks(o parts.Options, wantAccel string) []check {
	return []check{
		{"user", func() (string, error) {
			switch uid := os.Geteuid(); {
			case uid != 0:
				return fmt.Sprintf("uid %d, root in a user namespace per container", uid), nil
			case userns.RunningInUserNS():
				return "root of a user namespace", nil
			default:
				return "root", nil
			}
		}},
		{"QEMU", func() (string, error) { return checkQEMU(o) }},
		{"virtiofsd", func() (string, error) {
			v, err := parts.FindVirtiofsd(o)
			return fmt.Sprintf("%s (the %s one)", v.Path, dialectName(v.Dialect)), err
		}},
		{"kernels", func() (string, error) { return checkKernels(o) }},
		{"acceleration", func() (string, error) {
			a, reason, err := accel.Resolve(wantAccel)
			return fmt.Sprintf("%s (%s)", a, reason), err
		}},
		{"network", func() (string, error) {
			if os.Geteuid() != 0 {
				return "QEMU's own (what podman's networks need, podman unshare boxlite check says)", nil
			}
			if err := hostnet.Probe(); errors.Is(err, unix.EPERM) {
				return "", fmt.Errorf("%w: this user may not", err)
			} else if err != nil {
				return "", fmt.Errorf("%w; load the modules tun, act_mirred, cls_u32 and sch_ingress", err)
			}
			return "/dev/net/tun, traffic control", nil
		}},
		{"cgroups", func() (string, error) {
			version, err := hostcgroup.Host()
			if err != nil {
				err = fmt.Errorf("%w; mount them at /sys/fs/cgroup", err)
			}
			return version, err
		}},
	}
}

// report prints a line for each check and returns an error that names the ones
// without which nothing runs.
func report(w io.Writer, checks []check) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var missing []string
	for _, c := range checks {
		state := "ok"
		found, err := c.look()
		if err != nil {
			state, found = "missing", err.Error()
			missing = append(missing, c.what)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", c.what, state, strings.ReplaceAll(found, "\n", " "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("no container can run on this machine for want of: %s", strings.Join(missing, ", "))
	}
	return nil
}

// The QEMU that the command line is written for.
const minQEMUMajor, minQEMUMinor = 7, 2

func checkQEMU(o parts.Options) (string, error) {
	path, err := parts.FindQEMU(o)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", path, err, bytes.TrimSpace(out))
	}
	version, err := qemuVersion(string(out))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return fmt.Sprintf("%s, version %s", path, version), nil
}

var qemuVersionLine = regexp.MustCompile(`version (\d+)\.(\d+)(?:\.\d+)*`)

// qemuVersion reads what qemu --version says, and refuses what is too old.
func qemuVersion(out string) (string, error) {
	m := qemuVersionLine.FindStringSubmatch(out)
	if m == nil {
		return "", errors.New("it does not say its version")
	}
	major, _ := strconv.Atoi(m[1]) // digits; a number too large is new enough
	minor, _ := strconv.Atoi(m[2])
	version := strings.TrimPrefix(m[0], "version ")
	if major < minQEMUMajor || major == minQEMUMajor && minor < minQEMUMinor {
		return "", fmt.Errorf("version %s is too old: install %d.%d or later", version, minQEMUMajor, minQEMUMinor)
	}
	return version, nil
}

func checkKernels(o parts.Options) (string, error) {
	images, initramfs, err := parts.FindImages(o)
	if err != nil {
		return "", err
	}
	var names []string
	for k := range images {
		names = append(names, string(k))
	}
	slices.Sort(names)
	return fmt.Sprintf("%s and the initramfs in %s", strings.Join(names, ", "), filepath.Dir(initramfs)), nil
}

func dialectName(d parts.Dialect) string {
	if d == parts.DialectRust {
		return "Rust"
	}
	return "C"
}
