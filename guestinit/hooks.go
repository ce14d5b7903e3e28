package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// runHooks runs the startContainer hooks, one after the other, as config.md,
// "POSIX-platform Hooks", says. As under runc a hook has what the container init
// is about to have: its namespaces, cgroup, user, capabilities and seccomp filter.
func (c *container) runHooks(state *specs.State) error {
	if c.spec.Hooks == nil {
		return nil
	}
	raw, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for i, h := range c.spec.Hooks.StartContainer {
		if err := c.runHook(h, raw); err != nil {
			return guestproto.Errorf(guestproto.CodeHook, "startContainer hook #%d: %v", i, err)
		}
	}
	return nil
}

func (c *container) runHook(h specs.Hook, state []byte) error {
	spec := *c.spec.Process
	spec.Terminal, spec.ConsoleSize, spec.ExecCPUAffinity = false, nil, nil
	if spec.Args = h.Args; len(h.Args) == 0 {
		spec.Args = []string{h.Path}
	}
	if h.Env != nil {
		spec.Env = h.Env
	}
	p, err := newProcess("hook", scriptSize(spec.Args, spec.Env))
	if err != nil {
		return err
	}
	p.file = h.Path
	if _, err := c.startExec(p, &guestproto.ExecRequest{Process: &spec}); err != nil {
		p.kill()
		return err
	}
	defer p.forget()
	output := p.stdio.converse(state)
	if h.Timeout != nil {
		timer := time.AfterFunc(time.Duration(*h.Timeout)*time.Second, p.terminate)
		defer timer.Stop()
	}
	<-p.ended
	said := strings.TrimSpace(output())
	switch end := waitReply(p.status); {
	case p.timedOut.Load():
		return fmt.Errorf("%s: timed out after %d s", h.Path, *h.Timeout)
	case end.Signal != 0:
		dumped := ""
		if p.status.CoreDump() {
			dumped = " (core dumped)"
		}
		return fmt.Errorf("error running hook: signal: %v%s, output: %s", unix.Signal(end.Signal), dumped, said) // as os.ProcessState says it for runc
	case end.Code != 0:
		return fmt.Errorf("error running hook: exit status %d, output: %s", end.Code, said)
	}
	return nil
}

// terminate ends a process whose time is up.
func (p *process) terminate() {
	p.timedOut.Store(true)
	_ = p.signal(9) // it may just have ended
}

// conversationGrace is how long what a process has left behind may keep its
// output open.
const conversationGrace = 100 * time.Millisecond

// mostOutput is how much of a hook's output is kept, the end of it, in bytes.
const mostOutput = 1536

// converse gives a process all of its input. The function that it returns waits
// for the end of the output, once the process has ended, and returns it.
func (s *stdio) converse(input []byte) (output func() string) {
	s.mu.Lock()
	stdin, outputs := s.ends[guestproto.Stdin], []*os.File{s.ends[guestproto.Stdout], s.ends[guestproto.Stderr]}
	clear(s.ends)
	s.mu.Unlock()
	go func() {
		_, _ = stdin.Write(input) // a process need not read it
		_ = stdin.Close()
	}()
	go func() {
		<-s.ended
		_ = stdin.SetWriteDeadline(time.Now())
		for _, f := range outputs {
			_ = f.SetReadDeadline(time.Now().Add(conversationGrace))
		}
	}()
	var tail tailWriter
	var readers sync.WaitGroup
	for _, f := range outputs {
		readers.Go(func() {
			_, _ = io.Copy(&tail, f) // to the end of file, or for as long as it may take
			_ = f.Close()
		})
	}
	return func() string {
		readers.Wait()
		return string(tail.kept)
	}
}

// tailWriter keeps the last mostOutput bytes.
type tailWriter struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if n := len(t.kept) - mostOutput; n > 0 {
		t.kept = append(t.kept[:0], t.kept[n:]...)
	}
	return len(p), nil
}
