package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
)

var listCommand = &cli.Command{
	Name:  "list",
	Usage: "list the containers below the state root",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: "table", Usage: "`table|json`"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "ids only"},
	},
	Before: takes(0, 0),
	Action: func(c *cli.Context) error {
		rt, err := newRuntime(c)
		if err != nil {
			return err
		}
		all, err := rt.List()
		if err != nil {
			return err
		}
		states := make([]containerState, 0, len(all))
		for _, ctr := range all {
			states = append(states, stateOf(ctr))
		}
		switch {
		case c.Bool("quiet"):
			for _, s := range states {
				fmt.Fprintln(c.App.Writer, s.ID)
			}
			return nil
		case c.String("format") == "json":
			return json.NewEncoder(c.App.Writer).Encode(states) // one line, as runc's
		case c.String("format") == "table":
			return writeStateTable(c, states)
		default:
			return fmt.Errorf("list: invalid format %q: table or json", c.String("format"))
		}
	},
}

func writeStateTable(c *cli.Context, states []containerState) error {
	w := tabwriter.NewWriter(c.App.Writer, 12, 1, 3, ' ', 0)
	fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
	for _, s := range states {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
	}
	return w.Flush()
}
