package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/engineconfig"
)

var installCommand = &cli.Command{
	Name:      "install",
	Usage:     "register boxlite with a container engine",
	ArgsUsage: "[-- FLAG...]",
	Description: `Adds boxlite to the runtimes in the engine's configuration and leaves the rest of
the file as it is. What the file was before is kept beside it. Flags behind -- are
global flags of boxlite that Docker shall give it with each command.`,
	Flags: append([]cli.Flag{
		&cli.BoolFlag{Name: "default", Usage: "use it also for containers that name no runtime"},
	}, engineFlags...),
	Before: oneEngine,
	Action: func(c *cli.Context) error {
		return inEngine(c, install)
	},
}

var uninstallCommand = &cli.Command{
	Name:  "uninstall",
	Usage: "take boxlite out of a container engine's configuration",
	Description: `Undoes install, --default as well. If nobody else has changed the file since, it
is byte for byte what it was.`,
	Flags:  engineFlags,
	Before: oneEngine,
	Action: func(c *cli.Context) error {
		if err := takes(0, 0)(c); err != nil {
			return err
		}
		return inEngine(c, uninstall)
	},
}

var engineFlags = []cli.Flag{
	&cli.BoolFlag{Name: string(engineconfig.Docker), Usage: "in daemon.json"},
	&cli.BoolFlag{Name: string(engineconfig.Podman), Usage: "in containers.conf.d"},
	&cli.BoolFlag{Name: string(engineconfig.Containerd), Usage: "in config.toml, for Kubernetes (ctr run --runc-binary PATH needs no installation)"},
	&cli.BoolFlag{Name: string(engineconfig.CRIO), Usage: "in crio.conf.d, for Kubernetes"},
	&cli.StringFlag{Name: "name", Value: "boxlite", Usage: "`name` of the runtime in the engine"},
	&cli.StringFlag{Name: "config", Usage: "`file` to edit (default: the engine's own, in /etc or, for another user than root, in ~/.config)"},
	&cli.BoolFlag{Name: "dry-run", Usage: "print what would change, as diff -u does, and change nothing"},
}

// engineHint is what to do once the configuration is written.
type engineHint struct {
	engine engineconfig.Engine
	// unit is the systemd service that reads the file, empty for none.
	unit string
	// reloads says that it need not be restarted for a runtime.
	reloads bool
	try     string
}

var engineHints = []engineHint{
	{engineconfig.Docker, "docker", true, "docker run --rm --runtime %s busybox uname -r"},
	{engineconfig.Podman, "", false, "podman --runtime %s run --rm busybox uname -r"},
	{engineconfig.Containerd, "containerd", false, "crictl runp --runtime %s POD.json"},
	{engineconfig.CRIO, "crio", false, "crictl runp --runtime %s POD.json"},
}

// oneEngine checks that one of the engines is chosen.
func oneEngine(c *cli.Context) error {
	if _, err := chosenEngine(c); err != nil {
		return fmt.Errorf("boxlite %s: %w", c.Command.Name, err)
	}
	return nil
}

func chosenEngine(c *cli.Context) (*engineHint, error) {
	var chosen *engineHint
	for i, h := range engineHints {
		if !c.Bool(string(h.engine)) {
			continue
		}
		if chosen != nil {
			return nil, fmt.Errorf("--%s and --%s: one engine at a time", chosen.engine, h.engine)
		}
		chosen = &engineHints[i]
	}
	if chosen == nil {
		return nil, errors.New("which engine? --docker, --podman, --containerd or --cri-o")
	}
	return chosen, nil
}

// inEngine calls f with what the command line says of the engine.
func inEngine(c *cli.Context, f func(c *cli.Context, h *engineHint, file string) error) error {
	h, err := chosenEngine(c)
	if err != nil {
		return err
	}
	file := c.String("config")
	if file == "" {
		home, err := configHome()
		if err != nil {
			return err
		}
		if file, err = h.engine.File(c.String("name"), home); err != nil {
			return err
		}
	}
	if err := f(c, h, file); err != nil {
		return fmt.Errorf("boxlite %s: %w", c.Command.Name, err)
	}
	return nil
}

// configHome is where an ordinary user's configuration is, empty for root.
func configHome() (string, error) {
	if os.Geteuid() == 0 {
		return "", nil
	}
	return os.UserConfigDir()
}

func install(c *cli.Context, h *engineHint, file string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	flags := c.Args().Slice()
	if err := checkGlobalFlags(c.App.Flags, flags); err != nil {
		return err
	}
	rt := engineconfig.Runtime{Name: c.String("name"), Path: filepath.Clean(self), Args: flags, Default: c.Bool("default")}
	change, err := h.engine.Install(file, rt)
	if err != nil {
		return err
	}
	if done, err := makeChange(c, change, "has runtime "+rt.Name+" already"); done || err != nil {
		return err
	}
	w := c.App.Writer
	fmt.Fprintf(w, "%s: runtime %s is %s\n", change.Path, rt.Name, strings.Join(append([]string{rt.Path}, flags...), " "))
	if change.Keeps() {
		fmt.Fprintf(w, "%s: the file as it was\n", change.Backup())
	}
	if os.Geteuid() != 0 && c.String("config") == "" {
		fmt.Fprintln(w, "That is for the engine of this user alone; as root, install is for the machine's.")
	}
	h.sayNext(w, rt.Default)
	fmt.Fprintf(w, "Try it:\n    "+h.try+"\n", rt.Name)
	return nil
}

func uninstall(c *cli.Context, h *engineHint, file string) error {
	change, err := h.engine.Uninstall(file, c.String("name"))
	if err != nil {
		return err
	}
	if done, err := makeChange(c, change, "has no runtime "+c.String("name")); done || err != nil {
		return err
	}
	w := c.App.Writer
	if change.New == nil {
		fmt.Fprintf(w, "%s: removed, it held runtime %s only\n", change.Path, c.String("name"))
	} else {
		fmt.Fprintf(w, "%s: runtime %s removed\n", change.Path, c.String("name"))
	}
	h.sayNext(w, true) // the default may have been taken back
	return nil
}

// makeChange applies a change, or prints it with --dry-run. Done says that nothing
// is to be said any more; none is what is said if there is nothing to change.
func makeChange(c *cli.Context, change engineconfig.Change, none string) (done bool, err error) {
	switch {
	case change.Empty():
		_, err = fmt.Fprintf(c.App.Writer, "%s: %s, nothing is changed\n", change.Path, none)
		return true, err
	case c.Bool("dry-run"):
		_, err = c.App.Writer.Write(change.Diff())
		return true, err
	}
	return false, change.Apply()
}

// sayNext says how the engine comes to read its configuration. A default takes a
// restart: it is docker build's too, which looks at the start.
func (h *engineHint) sayNext(w io.Writer, isDefault bool) {
	if h.unit == "" {
		return // with every command
	}
	systemctl, verb := "systemctl", "restart"
	if os.Geteuid() != 0 {
		systemctl += " --user"
	}
	if h.reloads && !isDefault {
		verb = "reload"
	}
	fmt.Fprintf(w, "Have %s read it:\n    %s %s %s\n", h.engine, systemctl, verb, h.unit)
}

// checkGlobalFlags refuses what boxlite would not understand before a command.
func checkGlobalFlags(known []cli.Flag, args []string) error {
	for len(args) > 0 {
		n := flagWords(known, args)
		if n == 0 {
			return fmt.Errorf("%q is no global flag of boxlite (see boxlite --help)", args[0])
		}
		args = args[n:]
	}
	return nil
}
