package e2e

import (
	"testing"
)

// A group of containers, as compose makes it: a network with names, a volume, a server, jobs that use both.
func TestGroup(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--label", "group=g", "group")
		e.ok("volume", "create", "--label", "group=g", "groupdata")
		e.start("--name", "db", "--label", "group=g", "--network", "group", "--network-alias", "store", "-v", "groupdata:/data", "--restart", "unless-stopped",
			"--health-cmd", "wget -qO- http://localhost:8080/log", "--health-interval", "500ms", "--health-retries", "100",
			"busybox", "sh", "-c", "echo start >>/data/log; exec httpd -f -p 8080 -h /data")
		e.waitHealth("db", "healthy")
		job := func() string {
			e.Helper()
			return e.runOK("--network", "group", "--volumes-from", "db:ro", "busybox", "sh", "-c", "wget -qO- http://store:8080/log && cmp /data/log /data/log && ! touch /data/x 2>/dev/null")
		}
		e.want("job", job(), "start")
		e.want("containers of the group", e.ok("ps", "--filter", "label=group=g", "--format", "{{.Names}}"), "db")

		// The server is there again with its data and its names.
		e.ok("restart", "-t", "0", "db")
		e.waitHealth("db", "healthy")
		e.want("job after a restart", job(), "start\nstart")
		e.ok("stop", "-t", "0", "db")
		e.want("stopped", e.inspect("db", ".State.Status"), "exited")
	})
}

func (e *env) waitHealth(id, want string) {
	e.Helper()
	if err := waitFor("health "+want, func() bool { return e.inspect(id, ".State.Health.Status") == want }); err != nil {
		e.Fatalf("%v: %s", err, e.inspect(id, "json .State.Health"))
	}
}

func TestHealthcheck(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("--health-cmd", "echo looked; test -e /ok", "--health-interval", "300ms", "--health-retries", "2", "busybox", "sleep", "1000")
		e.waitHealth(id, "unhealthy")
		e.exec(id, "touch", "/ok")
		e.waitHealth(id, "healthy")
		e.wantPart("the last look", e.inspect(id, "json .State.Health"), `"Output":"looked\n"`)
	})
}

// The keys that leave a container leave it running, with the default ones and others.
func TestDetachKeys(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.ok("run", "-dit", "--runtime", e.rt.name, "busybox", "sh")
		for keys, sent := range map[string]string{"": "\x10\x11", "ctrl-x,d": "\x18d"} {
			args := []string{"attach"}
			if keys != "" {
				args = append(args, "--detach-keys", keys)
			}
			s := e.terminal(append(args, id)...)
			s.send("echo a$((1+1))b\n")
			s.expect("a2b")
			s.send(sent)
			s.end()
			e.want("status after the keys", e.inspect(id, ".State.Status"), "running")
		}
		s := e.terminal("exec", "-it", "--detach-keys", "ctrl-x,d", id, "sh")
		s.send("echo a$((1+1))b\n")
		s.expect("a2b")
		s.send("\x18d")
		s.end()
		e.want("status after leaving an exec", e.inspect(id, ".State.Status"), "running")
	})
}
