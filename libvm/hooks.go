package libvm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/libvm/fault"
)

// runHooks runs hooks in dir, one after the other with state on their stdin, as
// config.md, "POSIX-platform Hooks", says. It stops at the first that fails.
// Of a directory nothing is said there: dir is where runc 1.1 runs them.
func runHooks(kind, dir string, hooks []specs.Hook, state specs.State) error {
	raw, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for i, h := range hooks {
		if err := runHook(dir, h, raw); err != nil {
			return fmt.Errorf("%s hook #%d: %w", kind, i, err)
		}
	}
	return nil
}

func runHook(dir string, h specs.Hook, state []byte) error {
	ctx := context.Background()
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	out := &fault.Tail{Limit: 4 << 10}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Dir = dir
	cmd.Env = h.Env // nil inherits
	cmd.Stdin = bytes.NewReader(state)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second // a child of the hook may hold its output open
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: timed out after %d s", h.Path, *h.Timeout)
	}
	if err != nil {
		return fmt.Errorf("error running hook: %w, output: %s", err, out)
	}
	return nil
}
