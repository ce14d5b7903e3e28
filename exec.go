package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

var execCommand = &cli.Command{
	Name:      "exec",
	Usage:     "run a further process in a container",
	ArgsUsage: "ID [COMMAND [ARG...]]",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "process", Aliases: []string{"p"}, Usage: "`file` with the process object as JSON"},
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return once it runs"},
		&cli.StringFlag{Name: "pid-file", Usage: "write the pid of the process that stands for it to `file`"},
		&cli.StringFlag{Name: "console-socket", Usage: "`path` of a socket that receives the terminal's master"},
		&cli.StringFlag{Name: "pidfd-socket", Usage: "`path` of a socket that receives a pidfd of the process that stands for it"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give it a terminal"},
		&cli.StringFlag{Name: "cwd", Usage: "working `directory` in the container"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "add `NAME=VALUE` to the environment"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`UID[:GID]` to run as"},
		&cli.Int64SliceFlag{Name: "additional-gids", Aliases: []string{"g"}, Usage: "further group `id`"},
		&cli.StringSliceFlag{Name: "cap", Aliases: []string{"c"}, Usage: "add a `capability`, such as CAP_NET_RAW"},
		&cli.BoolFlag{Name: "no-new-privs", Usage: "let it gain no privileges by executing a file"},
		&cli.StringFlag{Name: "apparmor", Usage: "`profile`: accepted, but it does not reach into the VM"},
		&cli.StringFlag{Name: "process-label", Usage: "`label`: accepted, but the guest has no SELinux"},
		&cli.IntFlag{Name: "preserve-fds", Usage: "`number` of further descriptors: refused if not 0, they do not reach into a VM"},
		&cli.StringFlag{Name: "cgroup", Usage: "`path` below the container's cgroup"},
		&cli.BoolFlag{Name: "ignore-paused", Usage: "in a paused container, wait until it is resumed"},
	},
	Before: takes(1, anyNumber),
	Action: func(c *cli.Context) error {
		if err := execIn(c); err != nil {
			var exit exitError
			if errors.As(err, &exit) {
				return err
			}
			return cli.Exit(err, 255) // as runc: a process cannot end with it by chance alone
		}
		return nil
	},
}

func execIn(c *cli.Context) error {
	ctr, err := loadContainer(c)
	if err != nil {
		return err
	}
	opts, err := execOptions(c, ctr)
	if err != nil {
		return about(c, ctr.ID, err)
	}
	opts.IgnorePaused = c.Bool("ignore-paused")
	switch status := ctr.Status(); {
	case status == specs.StateStopped:
		return about(c, ctr.ID, fmt.Errorf("cannot exec in a stopped container: %w", libvm.ErrNotRunning))
	case status == libvm.StatePaused && !opts.IgnorePaused:
		return about(c, ctr.ID, libvm.ErrPaused)
	}
	if c.Bool("detach") {
		return about(c, ctr.ID, ctr.ExecDetached(opts))
	}
	status, err := ctr.Exec(opts)
	if err != nil {
		return about(c, ctr.ID, err)
	}
	if code := status.Shell(); code != 0 {
		return exitError(code)
	}
	return nil
}

func execOptions(c *cli.Context, ctr *libvm.Container) (opts libvm.ExecOptions, err error) {
	if err := refuseFDs(c); err != nil {
		return opts, err
	}
	if opts.Process, err = execProcess(c, ctr); err != nil {
		return opts, err
	}
	if err := plan.ValidateProcess(opts.Process); err != nil {
		return opts, err
	}
	level := slog.LevelDebug // create has warned of config.json, and engines want one line of an exec that fails
	if c.IsSet("cap") {
		level = slog.LevelWarn
	}
	for _, w := range plan.GuestProcess(opts.Process) {
		c.App.Metadata["logs"].(*logOutput).logger.Log(c.Context, level, w, "id", ctr.ID)
	}
	plan.InheritRlimits(opts.Process, plan.CallersRlimits())
	opts.Cgroup = c.String("cgroup")
	if !filepath.IsLocal(filepath.Join(".", opts.Cgroup)) {
		return opts, fmt.Errorf("exec failed: %s is not a sub cgroup path", opts.Cgroup)
	}
	opts.Stdio = libvm.Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	for _, p := range []struct {
		to   *string
		path string
	}{{&opts.PidFile, c.String("pid-file")}, {&opts.ConsoleSocket, c.String("console-socket")}, {&opts.PidfdSocket, c.String("pidfd-socket")}} {
		if p.path == "" {
			continue
		}
		if *p.to, err = filepath.Abs(p.path); err != nil {
			return opts, err
		}
	}
	if detached := c.Bool("detach"); detached && opts.Process.Terminal != (opts.ConsoleSocket != "") {
		if opts.Process.Terminal {
			return opts, errors.New("cannot allocate tty if runc will detach without setting console socket")
		}
		return opts, errors.New("cannot use console socket if runc will not detach or allocate tty")
	}
	return opts, nil
}

// execProcess is the process object of --process or, without it, config.json's
// with what the flags change.
func execProcess(c *cli.Context, ctr *libvm.Container) (*specs.Process, error) {
	if path := c.String("process"); path != "" {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		p := new(specs.Process)
		if err := json.Unmarshal(raw, p); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return p, nil
	}
	if ctr.Spec.Process == nil {
		return nil, errors.New("config.json has no process to start from: give one with --process")
	}
	p := *ctr.Spec.Process
	p.Args = c.Args().Tail()
	p.Terminal = c.Bool("tty")
	p.ConsoleSize = nil
	p.Env = append(slices.Clone(p.Env), c.StringSlice("env")...)
	if cwd := c.String("cwd"); cwd != "" {
		p.Cwd = cwd
	}
	if c.IsSet("no-new-privs") {
		p.NoNewPrivileges = c.Bool("no-new-privs")
	}
	if err := setUser(&p.User, c.String("user")); err != nil {
		return nil, err
	}
	for _, gid := range c.Int64Slice("additional-gids") {
		if gid < 0 || gid > 1<<32-1 {
			return nil, fmt.Errorf("--additional-gids %d: not a group id", gid)
		}
		p.User.AdditionalGids = append(slices.Clone(p.User.AdditionalGids), uint32(gid))
	}
	addCapabilities(&p, c.StringSlice("cap"))
	return &p, nil
}

// setUser takes UID or UID:GID, numbers as in runc.
func setUser(u *specs.User, text string) error {
	if text == "" {
		return nil
	}
	uid, gid, both := strings.Cut(text, ":")
	n, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return fmt.Errorf("parsing %s as int for uid failed: %w", uid, err)
	}
	u.UID = uint32(n)
	if !both {
		return nil
	}
	if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
		return fmt.Errorf("parsing %s as int for gid failed: %w", gid, err)
	}
	u.GID = uint32(n)
	return nil
}

// addCapabilities adds to the bounding, effective and permitted sets and, as runc
// does since 1.1.2, to the ambient one if it has some already. The inheritable set
// stays as it is (CVE-2022-29162), so that only what it holds can become ambient.
func addCapabilities(p *specs.Process, names []string) {
	if len(names) == 0 {
		return
	}
	caps := specs.LinuxCapabilities{}
	if p.Capabilities != nil {
		caps = *p.Capabilities
	}
	sets := []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted}
	if len(caps.Ambient) > 0 {
		sets = append(sets, &caps.Ambient)
	}
	for _, set := range sets {
		*set = append(slices.Clone(*set), names...)
	}
	p.Capabilities = &caps
}
