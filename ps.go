package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

var psCommand = &cli.Command{
	Name:      "ps",
	Usage:     "list the host's processes that stand for a container's: one for its process and one for each exec",
	ArgsUsage: "ID [PS OPTIONS]",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: "table", Usage: "`table|json`"},
	},
	Before: takes(1, anyNumber),
	Action: func(c *cli.Context) error {
		ctr, err := loadContainer(c)
		if err != nil {
			return err
		}
		pids, err := ctr.HostPids()
		if err != nil {
			return about(c, ctr.ID, err)
		}
		switch c.String("format") {
		case "json":
			return json.NewEncoder(c.App.Writer).Encode(pids)
		case "table":
			return about(c, ctr.ID, writeProcessTable(c, pids, c.Args().Tail()))
		default:
			return fmt.Errorf("ps: invalid format %q: table or json", c.String("format"))
		}
	},
}

// writeProcessTable runs ps(1) and keeps the lines of pids, as runc does.
func writeProcessTable(c *cli.Context, pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	out, err := exec.Command("ps", options...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("ps: %w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	if err != nil {
		return fmt.Errorf("ps: %w", err)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return fmt.Errorf("ps %s: no column PID in its output", strings.Join(options, " "))
	}
	fmt.Fprintln(c.App.Writer, lines[0])
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprintln(c.App.Writer, line)
		}
	}
	return nil
}
