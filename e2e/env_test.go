package e2e

import (
	"context"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// An env is a case on one runtime, through an engine. It fails the test with what the command said.
type env struct {
	*testing.T
	rt  ociRuntime
	d   *daemon // nil in podman's cases
	eng engine
}

// An engine is docker or podman: a command line, alike in both, that drives the runtime.
type engine interface {
	command(ctx context.Context, args ...string) *exec.Cmd
	// runFlags are those of run and create that belong to every container of a case.
	runFlags(rt ociRuntime) []string
}

// try runs a command of the engine to its end; stdin may be nil.
func try(eng engine, stdin io.Reader, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	cmd := eng.command(ctx, args...)
	cmd.Stdin = stdin
	return finish(ctx, cmd)
}

// eachRuntime runs the case on each selected runtime and checks that nothing is left of it.
func eachRuntime(t *testing.T, f func(e *env)) {
	for _, rt := range runtimes {
		t.Run(rt.name, func(t *testing.T) { runCase(t, rt, f) })
	}
}

// eachVM is eachRuntime for a case about the VM, which runc cannot pass.
func eachVM(t *testing.T, f func(e *env)) {
	found := false
	for _, rt := range runtimes {
		if rt.isVM() {
			found = true
			t.Run(rt.name, func(t *testing.T) { runCase(t, rt, f) })
		}
	}
	if !found {
		t.Skip("about the VM, and E2E_RUNTIMES selects no runtime with one")
	}
}

func runCase(t *testing.T, rt ociRuntime, f func(e *env)) {
	e := &env{T: t, rt: rt, d: theDaemon, eng: theDaemon}
	before := takeSnapshot()
	logged := e.d.logSize()
	t.Cleanup(func() {
		e.removeAll()
		if left := before.leftovers(); left != nil {
			t.Errorf("left over:\n%s", strings.Join(left, "\n"))
		}
		if t.Failed() {
			t.Log(e.d.logSince(logged))
		}
	})
	f(e)
}

// removeAll removes the case's containers, volumes and networks; the image stays.
func (e *env) removeAll() {
	if ids := strings.Fields(e.d.try(nil, "ps", "-aq").stdout); len(ids) > 0 {
		if r := e.d.try(nil, append([]string{"rm", "-fv"}, ids...)...); r.code != 0 {
			e.Errorf("remove the containers: %s", r)
		}
	}
	if names := strings.Fields(e.d.try(nil, "volume", "ls", "-q").stdout); len(names) > 0 {
		e.d.try(nil, append([]string{"volume", "rm", "-f"}, names...)...)
	}
	if names := strings.Fields(e.d.try(nil, "network", "ls", "-q", "--filter", "type=custom").stdout); len(names) > 0 {
		e.d.try(nil, append([]string{"network", "rm"}, names...)...)
	}
}

// docker runs the engine's command with args.
func (e *env) docker(args ...string) result {
	return try(e.eng, nil, args...)
}

// dockerIn is docker with an input.
func (e *env) dockerIn(stdin io.Reader, args ...string) result {
	return try(e.eng, stdin, args...)
}

// ok runs the engine's command with args, which must succeed, and returns stdout without its last newline.
func (e *env) ok(args ...string) string {
	e.Helper()
	r := e.docker(args...)
	if r.code != 0 {
		e.Fatalf("%s", r)
	}
	return strings.TrimSuffix(r.stdout, "\n")
}

// runArgs is "run --rm" on the runtime under test with args.
func (e *env) runArgs(args ...string) []string {
	return slices.Concat([]string{"run", "--rm"}, e.eng.runFlags(e.rt), args)
}

// run is docker run --rm with args, to its end.
func (e *env) run(args ...string) result {
	return e.docker(e.runArgs(args...)...)
}

// runOK is run of what must succeed; it returns stdout without its last newline.
func (e *env) runOK(args ...string) string {
	e.Helper()
	return e.ok(e.runArgs(args...)...)
}

// report runs a container that prints lines NAME=VALUE.
func (e *env) report(args ...string) map[string]string {
	e.Helper()
	return parseReport(e.runOK(args...))
}

func parseReport(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "="); ok {
			values[name] = value
		}
	}
	return values
}

// wantReport compares the values named in want.
func (e *env) wantReport(got, want map[string]string) {
	e.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok || g != w {
			e.Errorf("%s = %q, want %q", name, g, w)
		}
	}
}

// start is docker run -d with args; it returns the container's id. The container is removed when the case ends.
func (e *env) start(args ...string) string {
	e.Helper()
	return e.ok(slices.Concat([]string{"run", "-d"}, e.eng.runFlags(e.rt), args)...)
}

// startReady is start, and returns when the container has printed the line.
func (e *env) startReady(line string, args ...string) string {
	e.Helper()
	id := e.start(args...)
	s := e.session("logs", "-f", id)
	s.expect(line)
	s.kill()
	return id
}

// inspect gives a field of docker inspect.
func (e *env) inspect(id, field string) string {
	e.Helper()
	return e.ok("inspect", "--format", "{{"+field+"}}", id)
}

// exec is docker exec with args, which must succeed.
func (e *env) exec(args ...string) string {
	e.Helper()
	return e.ok(append([]string{"exec"}, args...)...)
}

func (e *env) want(what, got, want string) {
	e.Helper()
	if got != want {
		e.Errorf("%s = %q, want %q", what, clip(got), clip(want))
	}
}

// wantCode compares the exit code. What the deadline ended ends the case, whose other commands would meet it as well.
func (e *env) wantCode(r result, code int) {
	e.Helper()
	if r.code == -1 {
		e.Fatalf("%s", r)
	}
	if r.code != code {
		e.Errorf("exit code %d, want %d: %s", r.code, code, r)
	}
}

func (e *env) wantPart(what, got, part string) {
	e.Helper()
	if !strings.Contains(got, part) {
		e.Errorf("%s = %q, want %q in it", what, clip(got), part)
	}
}

// noErr ends the case unless err is nil.
func (e *env) noErr(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// diskDir makes a directory on disk, with a file system that knows attributes and big files, for the case.
func (e *env) diskDir() string {
	e.Helper()
	dir := filepath.Join(workDir, "case")
	e.noErr(sh("rm -rf " + dir + " && mkdir -m 755 " + dir))
	e.Cleanup(func() {
		if err := sh("rm -rf " + dir); err != nil {
			e.Error(err)
		}
	})
	return dir
}
