package main

import "github.com/urfave/cli/v2"

var pauseCommand = &cli.Command{
	Name:      "pause",
	Usage:     "stop all of a container until it is resumed",
	ArgsUsage: "ID",
	Description: `The processors of the container's VM stop. Signals wait until the container is
resumed, except for KILL, which resumes it.`,
	Before: takes(1, 1),
	Action: func(c *cli.Context) error {
		ctr, err := loadContainer(c)
		if err != nil {
			return err
		}
		return about(c, ctr.ID, ctr.Pause())
	},
}

var resumeCommand = &cli.Command{
	Name:      "resume",
	Usage:     "let a paused container go on",
	ArgsUsage: "ID",
	Before:    takes(1, 1),
	Action: func(c *cli.Context) error {
		ctr, err := loadContainer(c)
		if err != nil {
			return err
		}
		return about(c, ctr.ID, ctr.Resume())
	},
}
