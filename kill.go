package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

var killCommand = &cli.Command{
	Name:      "kill",
	Usage:     "send a signal (default: TERM) to the process of a container",
	ArgsUsage: "ID [SIGNAL]",
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "send it to every process of the container"},
	},
	Before: takes(1, 2),
	Action: func(c *cli.Context) error {
		ctr, err := loadContainer(c)
		if err != nil {
			return err
		}
		name := c.Args().Get(1)
		if name == "" {
			name = "TERM"
		}
		signal, err := parseSignal(name)
		if err != nil {
			return about(c, ctr.ID, err)
		}
		return about(c, ctr.ID, ctr.Signal(signal, c.Bool("all")))
	},
}

// parseSignal takes a number or a name with or without SIG, in any case. Zero
// is a signal: it probes.
func parseSignal(text string) (int, error) {
	if n, err := strconv.Atoi(text); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("invalid signal %q", text)
		}
		return n, nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	if n, ok := realtimeSignal(name); ok {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q", text)
}

// realtimeSignal knows SIGRTMIN+n and SIGRTMAX-n as glibc counts them, signal(7).
func realtimeSignal(name string) (int, bool) {
	const rtMin, rtMax = 34, 64
	for _, base := range []struct {
		prefix string
		number int
	}{{"SIGRTMIN", rtMin}, {"SIGRTMAX", rtMax}} {
		rest, ok := strings.CutPrefix(name, base.prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			n, err := strconv.Atoi(rest) // with its sign
			if err != nil {
				return 0, false
			}
			offset = n
		}
		n := base.number + offset
		return n, n >= rtMin && n <= rtMax
	}
	return 0, false
}
