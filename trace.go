package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"boxlite/internal/trace"
)

// traceOutput is where --trace writes, if it is given.
type traceOutput struct {
	path     string
	process  string // the command line without the global flags
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
	t.process = strings.Join(c.Args().Slice(), " ")
	t.recorder = trace.New(time.Unix(0, 0))
	t.end = t.recorder.Begin(c.Args().First())
	return nil
}

// close writes what was recorded, also of a command that has failed.
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
