// Boxlite is an OCI runtime, a drop-in for runc, that gives every container a
// virtual machine with its own Linux kernel.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/self"
)

// version and commit are set by the Makefile.
var (
	version = "0.1.0-dev"
	commit  = "unknown"
)

func init() {
	// main and RunExec need the process's first thread; see libvm's enterMounts.
	runtime.LockOSThread()
}

func main() {
	// Descriptors that a caller leaked must not live on in QEMU: containerd's
	// shim may leave its listening socket at 3, podman the ends of exit pipes.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "boxlite: close_range:", err)
		os.Exit(1)
	}
	args, err := ownArgs(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "boxlite:", err)
		os.Exit(1)
	}
	os.Exit(run(args))
}

// ownArgs returns the program's real arguments. They differ from the shown ones if
// the program has started itself under the container's command line; see
// self.ArgsVar.
func ownArgs(shown []string) ([]string, error) {
	text, ok := os.LookupEnv(self.ArgsVar)
	if !ok {
		return shown, nil
	}
	args := []string{"boxlite"}
	var own []string
	err := json.Unmarshal([]byte(text), &own)
	return append(args, own...), errors.Join(err, os.Unsetenv(self.ArgsVar)) // hooks do not see it
}

// exitError is the exit status of a container's process. It is not reported, as
// nothing has gone wrong.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// run is the program, and returns its exit status. Only run reports errors.
func run(args []string) int {
	logs := &logOutput{stderr: os.Stderr}
	traced := new(traceOutput)
	app := newApp(logs, traced)
	err := app.Run(append(args[:1:1], commandFlagsFirst(app.Flags, app.Commands, args[1:])...))
	if traceErr := traced.close(); traceErr != nil {
		logs.warn(traceErr) // the container is what it is
	}
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	}
	var coder cli.ExitCoder
	code := 1
	if errors.As(err, &coder) {
		if _, child := coder.(*exec.ExitError); !child { // a hook's or ps's own status is not ours
			code = coder.ExitCode()
		}
	}
	logs.fail(err)
	return code
}

func newApp(logs *logOutput, traced *traceOutput) *cli.App {
	cli.VersionPrinter = printVersion
	cli.FlagStringer = func(f cli.Flag) string { return helpOf(f).String() }
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"}
	app := &cli.App{
		Name:    "boxlite",
		Usage:   "run OCI containers, each in a virtual machine of its own",
		Version: version,
		Flags:   globalFlags,
		Commands: []*cli.Command{
			createCommand, startCommand, stateCommand, killCommand, deleteCommand,
			runCommand, execCommand, listCommand, psCommand, pauseCommand, resumeCommand, updateCommand, eventsCommand, logsCommand,
			templateCommand, standbyCommand, specCommand, featuresCommand, checkCommand, installCommand, uninstallCommand, completionCommand,
			completeCommand, manCommand, monitorCommand, memberCommand, execProcessCommand, standbyKeeperCommand, lateMountsCommand, socketDialerCommand,
		},
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*cli.Context, error) {}, // run reports
		Before: func(c *cli.Context) error {
			return errors.Join(logs.open(c.String("log"), c.String("log-format"), c.Bool("debug")), traced.open(c))
		},
		Metadata: map[string]any{"logs": logs, "trace": traced},
	}
	app.CustomAppHelpTemplate = cli.AppHelpTemplate + helpExample("")
	for _, cmd := range app.Commands {
		cmd.CustomHelpTemplate = cli.SubcommandHelpTemplate + helpExample(cmd.Name)
		if cmd.Subcommands == nil {
			cmd.HideHelpCommand = true // a container may be called "help"
			cmd.CustomHelpTemplate = cli.CommandHelpTemplate + helpExample(cmd.Name)
		}
		for _, sub := range cmd.Subcommands {
			sub.CustomHelpTemplate = cli.CommandHelpTemplate + helpExample(cmd.Name+" "+sub.Name)
		}
	}
	return app
}

var globalFlags = []cli.Flag{
	&cli.StringFlag{Name: "root", Usage: "`directory` for the state of containers (default: /run/boxlite, or $XDG_RUNTIME_DIR/boxlite for other users than root)"},
	&cli.StringFlag{Name: "log", Usage: "append the log to `file` (default: standard error)"},
	&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`text|json`: form of the log"},
	&cli.BoolFlag{Name: "debug", Usage: "log decisions and the QEMU command line"},
	&cli.StringFlag{Name: "trace", Usage: "append what the command's steps take to `file`, for ui.perfetto.dev or chrome://tracing"},
	&cli.BoolFlag{Name: "systemd-cgroup", Usage: "have systemd make the cgroups; cgroupsPath is then slice:prefix:name"},
	&cli.StringFlag{Name: "cgroup-manager", Usage: "`cgroupfs|systemd|disabled`: who makes the cgroups; disabled for no cgroup at all"},
	&cli.StringFlag{Name: "rootless", Value: "auto", Usage: "`true|false|auto`: accepted as runc does, changes nothing"},
	&cli.StringFlag{Name: "criu", Usage: "`path`: accepted as runc does, changes nothing"},
	&cli.StringFlag{Name: "kernel", Usage: "`lean|net|full`: guest kernel (default: full, if installed, for a container with CAP_SYS_ADMIN, CAP_BPF or CAP_PERFMON; net for one with CAP_NET_ADMIN)"},
	&cli.StringFlag{Name: "accel", Value: "auto", Usage: "`auto|kvm|tcg`: hardware virtualization, or emulation; auto takes KVM where it works"},
	&cli.IntFlag{Name: "vcpus", Usage: "`number` of the VM's processors (default: the CPU limit, or the host's number)"},
	&cli.IntFlag{Name: "vm-memory", Usage: "`MiB` of the VM (default: the memory limit with room for the guest's kernel, or 1024)"},
	&cli.StringFlag{Name: "scratch", Usage: "disk of its own for each container, as `PATH=SIZE` (/var/lib/docker=20G), removed with it (default: none)"},
	&cli.StringFlag{Name: "host-sockets", Value: "on", Usage: "`on|off`: on lets a container connect to the host's unix sockets that it has as bind mounts"},
	&cli.StringFlag{Name: "template", Value: "auto", EnvVars: []string{"BOXLITE_TEMPLATE"}, Usage: "`auto|off`: auto starts from a saved VM, and saves one where there is none; off boots every VM"},
	&cli.StringFlag{Name: "template-dir", EnvVars: []string{"BOXLITE_TEMPLATE_DIR"}, Usage: "`directory` for saved VMs (default: /run/boxlite-templates, or $XDG_RUNTIME_DIR/boxlite-templates for other users than root)"},
	&cli.StringFlag{Name: "qemu", Usage: "`path` of qemu-system-x86_64"},
	&cli.StringFlag{Name: "virtiofsd", Usage: "`path` of virtiofsd"},
	&cli.StringFlag{Name: "parts", Usage: "`directory` of the guest kernels and the initramfs (default: beside boxlite, or its lib/boxlite)"},
}

// printVersion prints in the form that docker parses: no line but the first may
// hold the word "version" (docs/contract.md, "Data formats").
func printVersion(c *cli.Context) {
	fmt.Fprintf(c.App.Writer, "boxlite version %s\ncommit: %s\nspec: %s\ngo: %s\n", version, commit, specs.Version, runtime.Version())
}
