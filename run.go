package main

import (
	"errors"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

var runCommand = &cli.Command{
	Name:      "run",
	Usage:     "create and start a container, wait for its end and remove it",
	ArgsUsage: "ID",
	Flags: append([]cli.Flag{
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return once it runs"},
		&cli.BoolFlag{Name: "keep", Usage: "do not remove it at the end"},
		&cli.BoolFlag{Name: "no-subreaper", Usage: "accepted: boxlite needs none"},
	}, createFlags...),
	Before: takes(1, 1),
	Action: func(c *cli.Context) error {
		stdio := libvm.Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		if c.Bool("detach") {
			ctr, err := createFromBundle(c, stdio)
			if err != nil {
				return err
			}
			return startOrDelete(c, ctr)
		}
		return runForeground(c, stdio)
	},
}

func startOrDelete(c *cli.Context, ctr *libvm.Container) error {
	if err := ctr.Start(); err != nil {
		return about(c, ctr.ID, errors.Join(err, ctr.Delete(true)))
	}
	return nil
}

// runForeground stands for the container until it has ended.
func runForeground(c *cli.Context, stdio libvm.Stdio) error {
	spec, err := plan.LoadSpec(c.String("bundle"))
	if err != nil {
		return about(c, c.Args().First(), err)
	}
	fg, err := libvm.NewForeground(spec, c.String("console-socket"), stdio)
	if err != nil {
		return err
	}
	defer fg.Close()
	ctr, err := createContainer(c, spec, stdio, fg.ConsoleSocket(), fg.PlainNewlines())
	if err != nil {
		return err
	}
	if err := fg.Attach(ctr); err != nil {
		return about(c, ctr.ID, errors.Join(err, ctr.Delete(true)))
	}
	if err := startOrDelete(c, ctr); err != nil {
		return err
	}
	steps := traceOf(c).recorder
	ended := steps.Begin("run: until the container has ended")
	status, err := fg.Wait()
	ended()
	if err == nil && !c.Bool("keep") {
		deleted := steps.Begin("run: delete")
		err = ctr.Delete(false)
		deleted()
	}
	if err != nil {
		return about(c, ctr.ID, err)
	}
	return exitError(status)
}
