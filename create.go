package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

var createCommand = &cli.Command{
	Name:      "create",
	Usage:     "create a container: its VM boots and holds the process before its exec",
	ArgsUsage: "ID",
	Flags:     createFlags,
	Before:    takes(1, 1),
	Action: func(c *cli.Context) error {
		_, err := createFromBundle(c, libvm.Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
		return err
	},
}

// createFlags are those of create and, with a few more, of run.
var createFlags = []cli.Flag{
	&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Value: ".", Usage: "`directory` with config.json"},
	&cli.StringFlag{Name: "pid-file", Usage: "write the container's pid to `file`"},
	&cli.StringFlag{Name: "console-socket", Usage: "`path` of a socket that receives the terminal's master"},
	&cli.StringFlag{Name: "pidfd-socket", Usage: "`path` of a socket that receives a pidfd of the container's process"},
	&cli.BoolFlag{Name: "no-pivot", Usage: "accepted: the guest's rootfs is never a ramdisk"},
	&cli.BoolFlag{Name: "no-mount-fallback", Usage: "accepted: the guest's mounts need no fallback"},
	&cli.BoolFlag{Name: "no-new-keyring", Usage: "accepted: the guest's keyrings are the container's own"},
	&cli.IntFlag{Name: "preserve-fds", Usage: "`number` of further descriptors: refused if not 0, they do not reach into a VM"},
}

// createFromBundle is for a container whose terminal, if there is one, is the caller's
// business.
func createFromBundle(c *cli.Context, stdio libvm.Stdio) (*libvm.Container, error) {
	spec, err := plan.LoadSpec(c.String("bundle"))
	if err != nil {
		return nil, about(c, c.Args().First(), err)
	}
	return createContainer(c, spec, stdio, c.String("console-socket"), false)
}

// createContainer does what create and run have in common.
func createContainer(c *cli.Context, spec *specs.Spec, stdio libvm.Stdio, consoleSocket string, plainNewlines bool) (*libvm.Container, error) {
	rt, err := newRuntime(c)
	if err != nil {
		return nil, err
	}
	id, err := containerID(c)
	if err != nil {
		return nil, err
	}
	traceOf(c).process += " " + id
	opts, err := createOptions(c, stdio, consoleSocket)
	if err != nil {
		return nil, about(c, id, err)
	}
	opts.Spec, opts.PlainNewlines = spec, plainNewlines
	ctr, err := rt.Create(id, opts)
	if err != nil {
		return nil, about(c, id, err)
	}
	if path := c.String("pidfd-socket"); path != "" {
		if err := ctr.SendPidfd(path); err != nil {
			return nil, about(c, id, errors.Join(err, ctr.Delete(true)))
		}
	}
	return ctr, nil
}

func createOptions(c *cli.Context, stdio libvm.Stdio, consoleSocket string) (opts libvm.CreateOptions, err error) {
	if err := refuseFDs(c); err != nil {
		return opts, err
	}
	opts.Stdio = stdio
	for _, p := range []struct {
		to   *string
		path string
	}{{&opts.Bundle, c.String("bundle")}, {&opts.PidFile, c.String("pid-file")}, {&opts.ConsoleSocket, consoleSocket}} {
		if p.path == "" {
			continue
		}
		if *p.to, err = filepath.Abs(p.path); err != nil {
			return opts, err
		}
	}
	return opts, nil
}

// refuseFDs refuses descriptors beyond stdio, rather than losing them silently.
func refuseFDs(c *cli.Context) error {
	if n := c.Int("preserve-fds"); n > 0 {
		return fmt.Errorf("--preserve-fds %d: descriptors do not reach into a VM", n)
	}
	if n := os.Getenv("LISTEN_FDS"); n != "" && n != "0" {
		return fmt.Errorf("LISTEN_FDS=%s: descriptors do not reach into a VM", n)
	}
	return nil
}
