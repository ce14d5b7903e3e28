package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/userns"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// stateRoot is the --root flag or its default.
func stateRoot(c *cli.Context) (string, error) {
	root, err := filepath.Abs(cmp.Or(c.String("root"), defaultRoot()))
	if err != nil {
		return "", err
	}
	if root == "/" {
		return "", errors.New("--root: / cannot hold containers' state")
	}
	return root, nil
}

func defaultRoot() string { return filepath.Join(runDir(), "boxlite") }

// templateDir is where saved VMs are kept, or empty if none shall be used.
func templateDir(c *cli.Context) (string, error) {
	switch mode := c.String("template"); mode {
	case "off":
		return "", nil
	case "auto", "":
		return filepath.Abs(cmp.Or(c.String("template-dir"), filepath.Join(runDir(), "boxlite-templates")))
	default:
		return "", fmt.Errorf("--template %q: auto or off", mode)
	}
}

// runDir is the directory for what does not outlive the machine's boot.
func runDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && actsForUser() {
		return dir
	}
	return "/run"
}

// actsForUser says whether the program works for an ordinary user, either directly
// or as the root of that user's namespace. The rule is runc's: USER is root for the
// root of a system container, and podman sets no USER.
func actsForUser() bool {
	return os.Geteuid() != 0 || userns.RunningInUserNS() && os.Getenv("USER") != "root"
}

// newRuntime makes the runtime that the global flags describe.
func newRuntime(c *cli.Context) (*libvm.Runtime, error) {
	root, err := stateRoot(c)
	if err != nil {
		return nil, err
	}
	templates, err := templateDir(c)
	if err != nil {
		return nil, err
	}
	cgroups := c.String("cgroup-manager")
	if cgroups != "" && cgroups != "cgroupfs" && cgroups != "systemd" && cgroups != "disabled" {
		return nil, fmt.Errorf("--cgroup-manager %q: cgroupfs, systemd or disabled", cgroups)
	}
	sockets := c.String("host-sockets")
	if sockets != "on" && sockets != "off" {
		return nil, fmt.Errorf("--host-sockets %q: on or off", sockets)
	}
	logs := c.App.Metadata["logs"].(*logOutput)
	return &libvm.Runtime{
		Root:          root,
		SystemdCgroup: c.Bool("systemd-cgroup") || cgroups == "systemd",
		NoCgroup:      cgroups == "disabled",
		Parts:         partOptions(c),
		Accel:         c.String("accel"),
		Overrides: plan.Overrides{
			Kernel: c.String("kernel"), MemoryMiB: c.Int("vm-memory"), VCPUs: c.Int("vcpus"), Scratch: c.String("scratch"),
			NoHostSockets: sockets == "off",
		},
		TemplateDir: templates,
		TurnFile:    filepath.Join(runDir(), "boxlite-turns"),
		Debug:       c.Bool("debug"),
		SelfArgs:    selfArgs(c, root),
		Trace:       traceOf(c).recorder,
		Log:         logs.logger,
	}, nil
}

func partOptions(c *cli.Context) parts.Options {
	return parts.Options{QEMU: c.String("qemu"), Virtiofsd: c.String("virtiofsd"), Dir: c.String("parts")}
}

// selfArgs are the global flags that matter to the monitor.
func selfArgs(c *cli.Context, root string) []string {
	args := []string{"--root", root, "--log-format", c.String("log-format")}
	if log := c.String("log"); log != "" {
		if abs, err := filepath.Abs(log); err == nil {
			args = append(args, "--log", abs)
		}
	}
	if c.Bool("debug") {
		args = append(args, "--debug")
	}
	return args
}

// containerID is a command's first argument.
func containerID(c *cli.Context) (string, error) {
	if id := c.Args().First(); id != "" {
		return id, nil
	}
	return "", fmt.Errorf("%s: container id is missing", c.Command.Name)
}

// loadContainer finds the container that a command is about.
func loadContainer(c *cli.Context) (*libvm.Container, error) {
	rt, err := newRuntime(c)
	if err != nil {
		return nil, err
	}
	id, err := containerID(c)
	if err != nil {
		return nil, err
	}
	traceOf(c).process += " " + id
	ctr, err := rt.Load(id)
	return ctr, about(c, id, err)
}

// about says which command met an error on which container, and where to look next.
func about(c *cli.Context, id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("boxlite: %s %s: %w%s%s", c.Command.Name, id, err, consoleHint(c, id, err), diskHint(err))
}

// diskHint is what to do about a full disk of the host's, which the guest may have
// met behind a share.
func diskHint(err error) string {
	var ge *guestproto.Error
	if !errors.Is(err, unix.ENOSPC) && (!errors.As(err, &ge) || ge.Code != guestproto.CodeDiskFull) {
		return ""
	}
	return " (this machine's disk is full there: df -h and df -i show it)"
}
