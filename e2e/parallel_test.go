package e2e

import (
	"fmt"
	"testing"
)

func TestTenAtOnce(t *testing.T) {
	eachRuntime(t, func(e *env) {
		const n = 10
		type answer struct {
			i int
			r result
		}
		answers := make(chan answer)
		for i := range n {
			go func() {
				answers <- answer{i, e.run("-v", fmt.Sprintf("volume-%d:/v", i), "busybox", "sh", "-c",
					fmt.Sprintf("echo %d >/v/file; cat /v/file; ping -c 1 -W 30 %s >/dev/null && echo pinged; exit %d", i, e.d.gateway, i))}
			}()
		}
		for range n {
			a := <-answers
			e.wantCode(a.r, a.i)
			e.want(fmt.Sprintf("stdout of %d", a.i), a.r.stdout, fmt.Sprintf("%d\npinged\n", a.i))
		}
	})
}

func TestRemoveRunning(t *testing.T) {
	eachRuntime(t, func(e *env) {
		// The check at the case's end sees whether anything is left; here what docker says, with the client of docker run
		// still attached and with execs running.
		before := takeSnapshot()
		s := e.session(e.runArgs("--name", "victim", "busybox", "sh", "-c", "echo up; exec sleep 1000")...)
		s.expect("up\n")
		x := e.session("exec", "victim", "sh", "-c", "echo in; exec sleep 1000")
		x.expect("in\n")
		e.ok("rm", "-f", "victim")
		e.want("exit code of docker run", itoa(s.end()), "137")
		x.end()
		if left := before.leftovers(); left != nil {
			e.Errorf("left over after rm -f: %q", left)
		}
		e.runOK("busybox", "true")
		if left := before.leftovers(); left != nil {
			e.Errorf("left over after run --rm: %q", left)
		}
	})
}

func TestLiveRestore(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.startReady("listening", "-i", "-p", "18080:7", "busybox", "sh", "-c",
			"probe serve tcp :7 & while read line; do echo got $line; done; wait")
		pid := e.inspect(id, ".State.Pid")
		e.noErr(e.d.stop())
		answer, err := dialEcho(e.addressOf(pid)+":7", "without a daemon")
		if err != nil || answer != "without a daemon" {
			e.Errorf("dial while dockerd is away = %q, %v", answer, err)
		}
		e.noErr(e.d.start())
		e.want("pid", e.inspect(id, ".State.Pid"), pid)
		e.want("exec after the restart", e.exec(id, "echo", "ok"), "ok")
		s := e.session("attach", id)
		s.send("hello\n")
		s.expect("got hello\n")
		e.ok("kill", id)
		e.want("wait", e.ok("wait", id), "137")

		// One that ends while dockerd is away has ended, with its code, when dockerd is back.
		id = e.startReady("ready", "busybox", "probe", "signals")
		shown := e.inspect(id, ".State.Pid")
		e.noErr(e.d.stop())
		e.shOut("kill -TERM " + shown)
		if err := waitFor("the container ends", func() bool { return processGone(shown) }); err != nil {
			e.Error(err)
		}
		e.noErr(e.d.start())
		if err := waitFor("dockerd sees it", func() bool { return e.inspect(id, ".State.Status") == "exited" }); err != nil {
			e.Error(err)
		}
		code := "5"
		if e.d.major() >= 26 {
			code = "255" // Docker 26 does not ask for it
		}
		e.want("exit code", e.inspect(id, ".State.ExitCode"), code)
	})
}
