// Boxlite is an OCI runtime, a drop-in for runc, that gives every container a
// virtual machine with its own Linux kernel.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm"
	"github.com/boxlite-oci/boxlite/libvm/parts"
	"github.com/boxlite-oci/boxlite/libvm/plan"
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

// ownArgs are the program's arguments where it has started itself and shows the
// container's instead; see self.ArgsVar.
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

// exitError is the status of a process that ran: nothing has gone wrong that
// would have to be reported.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// run is the program. It alone reports errors.
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
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"}
	app := &cli.App{
		Name:    "boxlite",
		Usage:   "run OCI containers, each in a virtual machine of its own",
		Version: version,
		Flags:   globalFlags,
		Commands: []*cli.Command{
			createCommand, startCommand, stateCommand, killCommand, deleteCommand,
			runCommand, execCommand, listCommand, psCommand, pauseCommand, resumeCommand, updateCommand, eventsCommand,
			templateCommand, standbyCommand, specCommand, featuresCommand, checkCommand,
			monitorCommand, execProcessCommand, standbyKeeperCommand,
		},
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*cli.Context, error) {}, // run reports
		Before: func(c *cli.Context) error {
			return errors.Join(logs.open(c.String("log"), c.String("log-format"), c.Bool("debug")), traced.open(c))
		},
		Metadata: map[string]any{"logs": logs, "trace": traced},
	}
	for _, cmd := range app.Commands {
		if cmd.Subcommands == nil {
			cmd.HideHelpCommand = true // a container may be called "help"
			cmd.CustomHelpTemplate = cli.CommandHelpTemplate
		}
	}
	return app
}

var globalFlags = []cli.Flag{
	&cli.StringFlag{Name: "root", Usage: "`directory` for the state of containers (default: /run/boxlite, or $XDG_RUNTIME_DIR/boxlite for other users than root)"},
	&cli.StringFlag{Name: "log", Usage: "append the log to `file` (default: standard error)"},
	&cli.StringFlag{Name: "log-format", Value: "text", Usage: "text or json"},
	&cli.BoolFlag{Name: "debug", Usage: "log decisions and the QEMU command line"},
	&cli.StringFlag{Name: "trace", Usage: "append what the command's steps take to `file`, for ui.perfetto.dev or chrome://tracing"},
	&cli.BoolFlag{Name: "systemd-cgroup", Usage: "have systemd make the cgroups; cgroupsPath is then slice:prefix:name"},
	&cli.StringFlag{Name: "cgroup-manager", Usage: "cgroupfs, systemd (as --systemd-cgroup), or disabled for no cgroup at all"},
	&cli.StringFlag{Name: "rootless", Value: "auto", Usage: "accepted as runc does: true, false or auto"},
	&cli.StringFlag{Name: "criu", Usage: "accepted and ignored"},
	&cli.StringFlag{Name: "kernel", Usage: "guest kernel: lean or net (default: net for a container with CAP_NET_ADMIN)"},
	&cli.StringFlag{Name: "accel", Value: "auto", Usage: "auto, kvm or tcg"},
	&cli.IntFlag{Name: "vcpus", Usage: "processors of the VM (default: the CPU limit, or the host's number)"},
	&cli.IntFlag{Name: "vm-memory", Usage: "`MiB` of the VM (default: the memory limit with room for the guest's kernel, or 1024)"},
	&cli.StringFlag{Name: "scratch", Usage: "disk of its own for each container, as `PATH=SIZE` (/var/lib/docker=20G), removed with it (default: none)"},
	&cli.StringFlag{Name: "template", Value: "auto", EnvVars: []string{"BOXLITE_TEMPLATE"}, Usage: "auto: start from a saved VM, and save one where there is none; off: boot every VM"},
	&cli.StringFlag{Name: "template-dir", EnvVars: []string{"BOXLITE_TEMPLATE_DIR"}, Usage: "`directory` for saved VMs (default: /run/boxlite-templates, or $XDG_RUNTIME_DIR/boxlite-templates for other users than root)"},
	&cli.StringFlag{Name: "qemu", Usage: "`path` of qemu-system-x86_64"},
	&cli.StringFlag{Name: "virtiofsd", Usage: "`path` of virtiofsd"},
	&cli.StringFlag{Name: "parts", Usage: "`directory` of the guest kernels and the initramfs (default: beside boxlite, or its lib/boxlite)"},
}

// printVersion keeps to the form that docker parses: no other line may hold the
// word "version".
func printVersion(c *cli.Context) {
	fmt.Fprintf(c.App.Writer, "boxlite version %s\ncommit: %s\nspec: %s\ngo: %s\n", version, commit, specs.Version, runtime.Version())
}

// stateRoot is the --root flag or its default.
func stateRoot(c *cli.Context) (string, error) {
	root, err := filepath.Abs(cmp.Or(c.String("root"), filepath.Join(runDir(), "boxlite")))
	if err != nil {
		return "", err
	}
	if root == "/" {
		return "", errors.New("--root: / cannot hold containers' state")
	}
	return root, nil
}

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

// actsForUser says that the program works for an ordinary user, be it as the
// root of that user's namespace. It is runc's rule: the root of a system
// container has root for a name, podman gives none.
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
	logs := c.App.Metadata["logs"].(*logOutput)
	return &libvm.Runtime{
		Root:          root,
		SystemdCgroup: c.Bool("systemd-cgroup") || cgroups == "systemd",
		NoCgroup:      cgroups == "disabled",
		Parts:         partOptions(c),
		Accel:         c.String("accel"),
		Overrides:     plan.Overrides{Kernel: c.String("kernel"), MemoryMiB: c.Int("vm-memory"), VCPUs: c.Int("vcpus"), Scratch: c.String("scratch")},
		TemplateDir:   templates,
		TurnFile:      filepath.Join(runDir(), "boxlite-turns"),
		Debug:         c.Bool("debug"),
		SelfArgs:      selfArgs(c, root),
		Trace:         traceOf(c).recorder,
		Log:           logs.logger,
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

const anyNumber = math.MaxInt

// takes checks the number of a command's arguments, in runc's words.
func takes(least, most int) cli.BeforeFunc {
	return func(c *cli.Context) error {
		n, what := c.NArg(), ""
		switch {
		case least == most && n != least:
			what = fmt.Sprintf("exactly %d", least)
		case n < least:
			what = fmt.Sprintf("a minimum of %d", least)
		case n > most:
			what = fmt.Sprintf("a maximum of %d", most)
		default:
			return nil
		}
		return fmt.Errorf("boxlite: %q requires %s argument(s)", c.Command.Name, what)
	}
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

// about says which command met an error on which container.
func about(c *cli.Context, id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("boxlite: %s %s: %w", c.Command.Name, id, err)
}

// logOutput is where the log goes.
type logOutput struct {
	stderr io.Writer
	toFile bool
	logger *slog.Logger
}

func (l *logOutput) open(path, format string, debug bool) error {
	l.logger = slog.New(newLogHandler(l.stderr, false, slog.LevelWarn)) // for errors of the flags themselves
	if format != "text" && format != "json" {
		return fmt.Errorf("invalid log-format %q: text or json", format)
	}
	level := slog.LevelWarn
	if debug {
		level = slog.LevelDebug
	}
	w := l.stderr
	if path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		w, l.toFile = f, true
	}
	l.logger = slog.New(newLogHandler(w, format == "json", level))
	return nil
}

// warn reports what did not end the program.
func (l *logOutput) warn(err error) {
	if l.logger != nil {
		l.logger.Warn(err.Error())
	}
}

// fail reports the error that ended the program: in the log and, where that is
// a file, in plain words on standard error too.
func (l *logOutput) fail(err error) {
	if l.logger == nil {
		fmt.Fprintln(l.stderr, err)
		return
	}
	l.logger.Error(err.Error())
	if l.toFile {
		fmt.Fprintln(l.stderr, err)
	}
}
