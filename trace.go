package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/internal/trace"
)

// traceOutput is where --trace writes, if it is given.
type traceOutput struct {
	path     string
	process  string // the command, and the container it is about once that is known
	recorder *trace.Recorder
	end      func() // of the span of the whole command
}

func (t *traceOutput) open(c *cli.Context) (err error) {
	path := c.String("trace")
	if path == "" {
		return nil
	}
	if t.path, err = filepath.Abs(path); err != nil {
		return err
	}
	t.process = c.Args().First() // not its arguments, which may hold secrets
	t.recorder = trace.New(time.Unix(0, 0))
	t.end = t.recorder.Begin(t.process)
	return nil
}

// traceOf is the trace of the program's command.
func traceOf(c *cli.Context) *traceOutput { return c.App.Metadata["trace"].(*traceOutput) }

// close writes the recorded steps, also those of a command that has failed.
func (t *traceOutput) close() error {
	if t.recorder == nil {
		return nil
	}
	t.end()
	if err := t.recorder.AppendTo(t.path, t.process); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	return nil
}
