package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm"
)

var eventsCommand = &cli.Command{
	Name:      "events",
	Usage:     "print a container's usage every now and then, and when it has run out of memory, as lines of JSON",
	ArgsUsage: "ID",
	Flags: []cli.Flag{
		&cli.DurationFlag{Name: "interval", Value: 5 * time.Second, Usage: "`time` between two prints of the usage"},
		&cli.BoolFlag{Name: "stats", Usage: "print the usage once and end"},
	},
	Before: takes(1, 1),
	Action: func(c *cli.Context) error {
		ctr, err := loadContainer(c)
		if err != nil {
			return err
		}
		if c.Duration("interval") <= 0 {
			return about(c, ctr.ID, errors.New("duration interval must be greater than 0"))
		}
		if ctr.Status() == specs.StateStopped {
			return fmt.Errorf("container with id %s is not running", ctr.ID)
		}
		if c.Bool("stats") {
			return about(c, ctr.ID, printStats(c, ctr))
		}
		return about(c, ctr.ID, streamEvents(c, ctr))
	},
}

// containerEvent is a line of output, as runc has it.
type containerEvent struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

func printStats(c *cli.Context, ctr *libvm.Container) error {
	stats, err := ctr.Stats()
	if err != nil {
		return err
	}
	return json.NewEncoder(c.App.Writer).Encode(containerEvent{"stats", ctr.ID, stats})
}

// streamEvents prints until the container has ended.
func streamEvents(c *cli.Context, ctr *libvm.Container) error {
	events, stop, err := ctr.Events()
	if err != nil {
		return err
	}
	defer stop()
	tick := time.NewTicker(c.Duration("interval"))
	defer tick.Stop()
	for {
		select {
		case event, ok := <-events:
			if !ok {
				return nil
			}
			if err := json.NewEncoder(c.App.Writer).Encode(containerEvent{string(event), ctr.ID, nil}); err != nil {
				return err
			}
		case <-tick.C:
			if err := printStats(c, ctr); err != nil {
				if errors.Is(err, libvm.ErrNotRunning) || errors.Is(err, libvm.ErrVMLost) {
					return nil // it has ended just now
				}
				return err
			}
		}
	}
}
