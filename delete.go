package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm"
)

var deleteCommand = &cli.Command{
	Name:      "delete",
	Usage:     "remove a container that has stopped or was never started",
	ArgsUsage: "ID",
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "end it first; no error if there is none"},
	},
	Before: takes(1, 1),
	Action: func(c *cli.Context) error {
		rt, err := newRuntime(c)
		if err != nil {
			return err
		}
		id, err := containerID(c)
		if err != nil {
			return err
		}
		force := c.Bool("force")
		ctr, err := rt.Load(id)
		if err == nil {
			err = ctr.Delete(force)
		}
		if errors.Is(err, libvm.ErrNotExist) && force {
			err = rt.DeleteRemains(id)
		}
		return about(c, id, err)
	},
}
