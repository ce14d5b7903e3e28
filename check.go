package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

var checkCommand = &cli.Command{
	Name:  "check",
	Usage: "say what this machine has and lacks for running containers",
	Description: `Prints one line for each thing that a container needs, or that would make it slow
or fail without a word, and at the end the one thing that is most worth doing. The
exit status is 1 if no container could run.`,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print an object, with checks and advice"},
	},
	Before: takes(0, 0),
	Action: func(c *cli.Context) error {
		r := lookAll(machineChecks(thisHost(c)))
		write := r.writeTable
		if c.Bool("json") {
			write = func(w io.Writer) error { return writeJSON(w, r) }
		}
		if err := write(c.App.Writer); err != nil {
			return err
		}
		return r.err()
	},
}

// check is one line of the report.
type check struct {
	what string
	// look returns what was found. An error means that a container cannot
	// run, and says what to do about it.
	look func() (finding, error)
}

// finding is what a check has found.
type finding struct {
	What  string     `json:"what"`
	State checkState `json:"state"`
	Found string     `json:"found"`
	// Advice is what to do about it; empty if nothing is to be done.
	Advice string `json:"advice,omitempty"`
}

type checkState string

const (
	checkOK      checkState = "ok"
	checkWarning checkState = "warning" // containers run, slowly or not all of them
	checkMissing checkState = "missing" // no container runs
)

// checkReport is what the command prints.
type checkReport struct {
	Checks []finding `json:"checks"`
	// Advice is the one thing most worth doing, empty if there is none.
	Advice string `json:"advice"`
}

// lookAll makes the checks. What is missing comes before what is slow, and an
// earlier check before a later one.
func lookAll(checks []check) (r checkReport) {
	for _, c := range checks {
		f, err := c.look()
		f.What, f.State = c.what, checkOK
		if f.Advice != "" {
			f.State = checkWarning
		}
		if err != nil {
			f.State, f.Found = checkMissing, strings.ReplaceAll(err.Error(), "\n", " ")
			f.Advice = f.Found
		}
		r.Checks = append(r.Checks, f)
	}
	for _, state := range []checkState{checkWarning, checkMissing} {
		if found := r.of(state); len(found) > 0 {
			r.Advice = found[0].What + ": " + found[0].Advice
		}
	}
	return r
}

func (r checkReport) of(state checkState) (found []finding) {
	for _, f := range r.Checks {
		if f.State == state {
			found = append(found, f)
		}
	}
	return found
}

// err names what is missing.
func (r checkReport) err() error {
	var missing []string
	for _, f := range r.of(checkMissing) {
		missing = append(missing, f.What)
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("no container can run on this machine for want of: %s", strings.Join(missing, ", "))
}

func (r checkReport) writeTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range r.Checks {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.What, f.State, f.Found)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	advice := "Nothing needs doing."
	if r.Advice != "" {
		advice = "Most worth doing: " + r.Advice
	}
	_, err := fmt.Fprintf(w, "\n%s\n", advice)
	return err
}
