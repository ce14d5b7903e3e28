package e2e

import (
	"context"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/boxlite-oci/boxlite/e2e/stream"
)

func TestStdinIsPipedAndClosed(t *testing.T) {
	eachRuntime(t, func(e *env) {
		r := e.dockerIn(strings.NewReader("one\ntwo\n"), e.runArgs("-i", "busybox", "cat")...)
		e.wantCode(r, 0)
		e.want("stdout", r.stdout, "one\ntwo\n")
		e.want("stderr", r.stderr, "")

		// Without -i stdin is empty, not open for ever.
		r = e.run("busybox", "sh", "-c", "cat; echo ended")
		e.want("stdout without -i", r.stdout, "ended\n")
	})
}

// A program may look what its stdin is before it reads it: without -i it is /dev/null, with it a pipe.
func TestNullStdin(t *testing.T) {
	eachRuntime(t, func(e *env) {
		look := []string{"sh", "-c", "readlink /proc/self/fd/0; stat -L -c %F /dev/stdin"}
		const null = "/dev/null\ncharacter special file"
		id := e.start("--user", "1000", "busybox", "sleep", "1000")
		e.want("exec", e.exec(append([]string{id}, look...)...), null)
		for _, flags := range [][]string{nil, {"--user", "1000"}, {"--read-only"}} {
			e.want(strings.Join(flags, " "), strings.TrimSpace(e.run(slices.Concat(flags, []string{"busybox"}, look)...).stdout), null)
		}
		r := e.dockerIn(strings.NewReader(""), e.runArgs("-i", "busybox", "stat", "-L", "-c", "%F", "/dev/stdin")...)
		e.want("with -i", r.stdout, "fifo\n")
		r = e.run("-v", "/dev:/dev", "busybox", "sh", "-c", "cat; echo ended")
		e.want("with a /dev of its own", r.stdout, "ended\n")
	})
}

func TestStdoutAndStderrApart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		// Also through the names that images use, as a user who does not own the pipes of the host.
		r := e.run("--user", "1000", "busybox", "sh", "-c",
			"echo out; echo err >&2; echo named-out >/dev/stdout; echo named-err >/dev/stderr; printf no-newline")
		e.wantCode(r, 0)
		e.want("stdout", r.stdout, "out\nnamed-out\nno-newline")
		e.want("stderr", r.stderr, "err\nnamed-err\n")
	})
}

// Every byte there is arrives as it is.
func TestStdioIsBinary(t *testing.T) {
	eachRuntime(t, func(e *env) {
		var all strings.Builder
		for i := range 256 {
			all.WriteByte(byte(i))
		}
		r := e.dockerIn(strings.NewReader(all.String()), e.runArgs("-i", "busybox", "cat")...)
		e.want("stdout", r.stdout, all.String())
	})
}

const manyBytes = 256 << 20

func TestMegabytesThroughStdin(t *testing.T) {
	eachRuntime(t, func(e *env) {
		want, err := stream.Sum(stream.NewReader(11, manyBytes))
		e.noErr(err)
		r := e.dockerIn(stream.NewReader(11, manyBytes), e.runArgs("-i", "busybox", "probe", "sum")...)
		e.wantCode(r, 0)
		e.want("what the container read", strings.TrimSpace(r.stdout), want)
		e.Logf("%d MiB in %.1f s", manyBytes>>20, r.took.Seconds())
	})
}

func TestMegabytesThroughStdout(t *testing.T) {
	eachRuntime(t, func(e *env) {
		want, err := stream.Sum(stream.NewReader(12, manyBytes))
		e.noErr(err)
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		var sum stream.Hash
		// The json-file driver would write a gigabyte to disk; the bytes of the case go to the client alone.
		cmd := e.d.command(ctx, e.runArgs("--log-driver", "none", "busybox", "probe", "gen", "12", "268435456")...)
		cmd.Stdout = &sum
		r := finish(ctx, cmd)
		e.wantCode(r, 0)
		e.want("what the client read", sum.String(), want)
		e.Logf("%d MiB in %.1f s", manyBytes>>20, r.took.Seconds())
	})
}

// Output that nobody reads blocks its writer alone, and comes out whole when it is read.
func TestUnreadOutputBlocksOnlyItsWriter(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("--log-driver", "none", "busybox", "sleep", "1000")
		slow := e.sessionStopped("exec", id, "probe", "gen", "5", "67108864")
		e.want("exec beside it", e.exec(id, "echo", "still", "here"), "still here")
		got := slow()
		want, err := stream.Sum(stream.NewReader(5, 64<<20))
		e.noErr(err)
		e.want("what was read late", got, want)
	})
}

// A process whose output nobody reads any more is told so, whether it waits for a reader or not.
func TestReaderGoesAway(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		head := func(cmd *exec.Cmd) {
			out, err := cmd.StdoutPipe()
			h.noErr(err)
			h.noErr(cmd.Start())
			line := make([]byte, 2)
			_, err = io.ReadFull(out, line)
			h.noErr(err)
			h.want("first line", string(line), "y\n")
			h.noErr(out.Close())
			giveUp := time.AfterFunc(deadline, func() { _ = cmd.Process.Kill() })
			if err := cmd.Wait(); err == nil || !giveUp.Stop() {
				h.Errorf("%v: %v, want an exit code soon", cmd.Args, err)
			}
		}
		const slowly = "while echo y && sleep .1; do :; done; exit 1"
		for name, script := range map[string]string{"yes": "exec yes", "slow": slowly} {
			b := h.bundle("reader-"+name, script, nil)
			head(h.cmdline("run", "--bundle", b.dir, b.id))
		}
		b := h.bundle("reader-exec", "sleep 1000", nil)
		h.create(b).start()
		head(h.cmdline("exec", b.id, "yes"))
		head(h.cmdline("exec", b.id, "sh", "-c", slowly))
		h.must("delete", "--force", b.id)
	})
}

// sessionStopped starts docker with args and does not read its output until the returned function is called, which gives
// its sum.
func (e *env) sessionStopped(args ...string) func() string {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	e.Cleanup(cancel)
	cmd := e.d.command(ctx, args...)
	out, err := cmd.StdoutPipe()
	e.noErr(err)
	e.noErr(cmd.Start())
	return func() string {
		sum, err := stream.Sum(out)
		e.noErr(err)
		e.noErr(cmd.Wait())
		return sum
	}
}
