package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm"
	"github.com/boxlite-oci/boxlite/libvm/guesttext"
)

var logsCommand = &cli.Command{
	Name:      "logs",
	Usage:     "print what the guest of a container has written to its console",
	ArgsUsage: "ID",
	Description: `These are messages of the guest's kernel, such as the reason of a panic, and those of
its first process if the container was made with --debug. What the container's own
process writes goes to who made the container: docker logs shows that. At most the
first 256 KiB are kept, until the container is deleted.`,
	Before: takes(1, 1),
	Action: func(c *cli.Context) error {
		ctr, err := loadContainer(c)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(ctr.ConsoleLog())
		if err != nil {
			return about(c, ctr.ID, err)
		}
		if len(text) == 0 {
			fmt.Fprintf(c.App.ErrWriter, "The guest of %s has written nothing to its console.\n", ctr.ID)
		}
		_, err = fmt.Fprint(c.App.Writer, visible(string(text)))
		return err
	},
}

// visible makes a console's text fit for a terminal, on which control characters of
// a guest would do what it likes: they are escaped, as in Go's strings.
func visible(text string) string {
	var b strings.Builder
	for _, r := range strings.ReplaceAll(text, "\r\n", "\n") {
		if r == '\n' || r == '\t' {
			b.WriteRune(r)
		} else {
			b.WriteString(guesttext.Escape(r))
		}
	}
	return b.String()
}

// consoleHint is what to do next about an error whose reason lies in the guest:
// look at the console, if there is something.
func consoleHint(c *cli.Context, id string, err error) string {
	if !libvm.InGuest(err) {
		return ""
	}
	root, err := stateRoot(c)
	if err != nil {
		return ""
	}
	ctr, err := (&libvm.Runtime{Root: root}).Load(id)
	if err != nil {
		return "" // it has gone, and its console with it
	}
	if info, err := os.Stat(ctr.ConsoleLog()); err != nil || info.Size() == 0 {
		return ""
	}
	command := "boxlite logs " + id
	if root != defaultRoot() {
		command = "boxlite --root " + root + " logs " + id
	}
	return " (its console: " + command + ")"
}
