package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestPodmanExitCodes(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.wantCode(e.run("busybox", "sh", "-c", "exit 7"), 7)
		r := e.run("busybox", "no-such-command")
		e.wantCode(r, 127)
		e.wantPart("stderr", r.stderr, `runc create failed: unable to start container process: exec: "no-such-command": executable file not found in $PATH`)
		e.wantCode(e.run("busybox", "/etc"), 126)
		e.wantCode(e.run("--no-such-flag", "busybox", "true"), 125)
	})
}

// A container's whole life, with everything that podman does to a running one.
func TestPodmanLife(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		dir := e.hostDir()
		id := e.startReady("up", "--name", "life", "--hostname", "h1", "-v", dir+":/vol", "--health-cmd", "test -f /healthy",
			"busybox", "sh", "-c", `trap "echo got term; exit 3" TERM; trap "echo got hup" HUP; echo up; while :; do sleep 0.1; done`)

		r := e.docker("exec", "life", "sh", "-c", "hostname; id -u; cat; echo err >&2; exit 5")
		e.wantCode(r, 5)
		e.want("stdout of exec", r.stdout, "h1\n0\n")
		e.want("stderr of exec", r.stderr, "err\n")
		r = e.dockerIn(strings.NewReader("in"), "exec", "-i", "-u", "1000", "-e", "A=b", "-w", "/tmp", "life", "sh", "-c", "id; pwd; echo $A; cat; touch mine; stat -c %u:%g mine")
		e.want("exec with user, environment and directory", r.stdout, "uid=1000(user) gid=1001(staff) groups=1002(extra)\n/tmp\nb\nin1000:1001\n")
		r = e.docker("exec", "life", "no-such-command")
		e.wantCode(r, 127)
		e.ok("exec", "-d", "life", "touch", "/detached")
		e.noErr(waitFor("the detached exec", func() bool { return e.docker("exec", "life", "test", "-f", "/detached").code == 0 }))
		s := e.terminal("exec", "-it", "life", "probe", "tty")
		s.expect("size 24 80")
		s.kill()

		e.wantCode(e.docker("healthcheck", "run", "life"), 1)
		e.ok("exec", "life", "touch", "/healthy")
		e.wantCode(e.docker("healthcheck", "run", "life"), 0)

		e.copyFiles(dir)
		diff := e.ok("diff", "life")
		for _, line := range []string{"A /healthy", "A /root/in", "C /root"} {
			e.wantPart("diff", diff+"\n", line+"\n")
		}
		e.wantPart("ps", e.ok("ps", "--format", "{{.Names}} {{.Status}}"), "life Up ")
		e.wantPart("top", e.ok("top", "life", "-o", "pid,args"), "sh -c trap")
		if !e.rootless { // without cgroups of version 2 podman refuses a user's
			stats := e.ok("stats", "--no-stream", "--format", "{{.Name}} {{.PIDS}} {{.MemUsage}}", "life")
			e.wantPart("stats", stats, "life ")
			if strings.HasPrefix(stats, "life 0 ") || strings.Contains(stats, " 0B /") {
				e.Errorf("stats = %q, want processes and memory", stats)
			}
		}

		logs := e.session("logs", "-f", "life")
		e.ok("kill", "-s", "HUP", "life")
		logs.expect("got hup")
		e.ok("stop", "-t", "30", "life")
		logs.expect("got term")
		e.want("exit code", e.inspect(id, ".State.ExitCode"), "3")
		e.want("inspect", e.ok("inspect", "--format", "{{.State.Status}} {{.State.OOMKilled}} {{.OCIRuntime}}", id), "exited false "+e.rt.name)

		e.wantPart("cp of a stopped container", e.ok("cp", "life:/root/in", "-"), "from the host")
		e.ok("commit", "-q", "life", "localhost/committed")
		defer e.ok("rmi", "--force", "localhost/committed")
		e.want("file in the committed image", e.runOK("localhost/committed", "cat", "/root/in"), "from the host")
		if e.rootless {
			e.want("mount", e.ok("unshare", "sh", "-c", "cat $(podman mount life)/root/in; podman umount life >/dev/null"), "from the host")
		} else {
			e.want("mount", e.readFile(filepath.Join(e.ok("mount", "life"), "root/in")), "from the host\n")
			e.ok("umount", "life")
		}

		e.ok("start", "life")
		e.ok("exec", "life", "true")
		e.ok("restart", "-t", "30", "life")
		e.want("after restart", e.inspect(id, ".State.Status"), "running")
		e.ok("rm", "-f", "-t", "0", "life")
	})
}

// copyFiles copies into and out of a running container, its volume included.
func (e *podmanEnv) copyFiles(dir string) {
	e.Helper()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	e.noErr(os.WriteFile(in, []byte("from the host\n"), 0o644))
	e.ok("cp", in, "life:/root/in")
	e.want("file copied in", e.ok("exec", "life", "cat", "/root/in"), "from the host")
	e.ok("cp", "life:/etc/in-image", out)
	e.want("file copied out", e.readFile(out), "from the image\n")
	e.ok("cp", in, "life:/vol/through")
	e.want("file copied into the volume", e.readFile(filepath.Join(dir, "through")), "from the host\n")
}

func (e *podmanEnv) readFile(path string) string {
	e.Helper()
	text, err := os.ReadFile(path)
	e.noErr(err)
	return string(text)
}

func TestPodmanTerminal(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		e.start("--name", "tty", "-it", "busybox", "sh", "-c", "stty -echo; read x; echo got $x; read x; exit $x")
		s := e.terminal("attach", "tty")
		s.send("word\n")
		s.expect("got word")
		s.send("9\n")
		s.end()
		e.want("exit code", e.ok("wait", "tty"), "9")
		// Input through a pipe ends.
		r := e.dockerIn(strings.NewReader("line\n"), e.runArgs("-i", "busybox", "cat")...)
		e.want("stdout", r.stdout, "line\n")
	})
}

func TestPodmanSettings(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		dir := e.hostDir()
		owned := filepath.Join(dir, "owned")
		e.noErr(os.Mkdir(owned, 0o755))
		if e.rootless {
			e.noErr(os.Chown(owned, userID, userID))
		}
		r := e.dockerIn(strings.NewReader("hidden"), "secret", "create", "word", "-")
		e.wantCode(r, 0)
		e.ok("volume", "create", "vol")
		got := e.report("--init", "--tmpfs", "/t:size=2m", "--shm-size", "3m", "--ulimit", "nofile=100:200", "--ulimit", "nproc=1000:1000", "--secret", "word",
			"--secret", "word,type=env,target=WORD", "-v", "vol:/data", "-v", dir+":/z:z", "-v", owned+":/u:U", "--user", "1000:1001", "--memory", "64m",
			"--sysctl", "net.ipv4.ip_unprivileged_port_start=70", "--annotation", "a=b", "--env", "B=c", "--oom-score-adj", "300",
			"busybox", "sh", "-c", `
				echo "init=$(tr '\0' ' ' </proc/1/cmdline | cut -d' ' -f1)"
				echo "tmpfs=$(df -k /t | awk 'END { print $2 }')"
				echo "shm=$(df -k /dev/shm | awk 'END { print $2 }')"
				echo "nofile=$(ulimit -n) $(ulimit -Hn)"
				echo "secret=$(cat /run/secrets/word) $WORD"
				touch /u/mine
				echo "owned=$(stat -c %u:%g /u) $(stat -c %u:%g /u/mine)"
				echo "shared=$(stat -c %u /z) $(stat -c %u /data)"
				echo "port=$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)"
				echo "env=$B"
				echo "oom=$(cat /proc/self/oom_score_adj)"
				echo "nnp=$(awk '/NoNewPrivs/ { print $2 }' /proc/self/status)"`)
		e.wantReport(got, map[string]string{
			"init": "/run/podman-init", "tmpfs": "2048", "shm": "3072", "nofile": "100 200", "secret": "hidden hidden",
			"owned": "1000:1001 1000:1001", "shared": "0 0", "port": "70", "env": "c", "oom": "300", "nnp": "0",
		})
		e.runOK("--read-only", "--user", "1000", "--tmpfs", "/t", "busybox", "touch", "/t/x", "/run/x", "/var/tmp/x")
	})
}

// What Podman does for an init such as systemd: on hosts with cgroup v1 it binds one of the host's hierarchies.
func TestPodmanSystemdMode(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		got := e.report("--systemd=always", "busybox", "sh", "-c", `
			echo "run=$(stat -f -c %T /run) $(touch /run/x /tmp/x && echo writable)"
			cd /sys/fs/cgroup/systemd 2>/dev/null || cd /sys/fs/cgroup
			echo "cgroup=$(mkdir .$(awk -F: '/name=systemd/ { print $3 }' /proc/self/cgroup)/mine && echo made)"`)
		e.want("run", got["run"], "tmpfs writable")
		if !e.rootless { // who has no cgroup of its own can make none
			e.want("cgroup", got["cgroup"], "made")
		}
	})
}

// The ids of a user namespace, and of the files as the host has them.
func TestPodmanUserNamespaces(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		dir := e.hostDir()
		const show = `echo "id=$(id -u)"; touch /root/mine; echo "file=$(stat -c %u /root/mine)"; echo "image=$(stat -c %u /etc/in-image)"; echo "map=$(awk '{ print $1 "+" $3 }' /proc/self/uid_map | xargs)"`
		e.wantReport(e.report("--userns", "auto:size=4096", "busybox", "sh", "-c", show),
			map[string]string{"id": "0", "file": "0", "image": "0", "map": "0+4096"})
		e.wantReport(e.report("--uidmap", "0:1:1000", "--gidmap", "0:1:1000", "busybox", "sh", "-c", show+`; echo "net=$(ip -o -4 addr | grep -vc ' lo ')"`),
			map[string]string{"id": "0", "file": "0", "image": "0", "map": "0+1000", "net": "1"})
		if !e.rootless {
			return // the rest is refused to root
		}
		e.wantReport(e.report("--userns", "keep-id", "-v", dir+":/vol", "busybox", "sh", "-c", `touch /vol/kept; echo "id=$(id -u)"; echo "file=$(stat -c %u /vol/kept)"; echo "image=$(stat -c %u /etc/in-image)"`),
			map[string]string{"id": itoa(userID), "file": itoa(userID), "image": "0"})
		st, err := os.Stat(filepath.Join(dir, "kept"))
		e.noErr(err)
		e.want("owner on the host", itoa(int(st.Sys().(*syscall.Stat_t).Uid)), itoa(userID))
		e.want("nomap", e.runOK("--userns", "nomap", "-v", dir+":/vol", "busybox", "sh", "-c", "id -u; stat -c %u /vol"), "0\n65534")
	})
}

func TestPodmanPrivileged(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		got := e.report("--privileged", "busybox", "sh", "-c", `
			mkdir /m && mount -t tmpfs none /m && echo mounted=1
			echo "panic=$(sysctl -nw kernel.panic=0 2>&1)"`)
		e.want("mount", got["mounted"], "1")
		if e.rt.isVM() { // its own kernel's, whoever started it
			e.want("kernel parameter", got["panic"], "0")
		}
	})
}

func TestPodmanRestartPolicy(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		id := e.start("--restart", "on-failure:2", "busybox", "sh", "-c", "echo run; exit 4")
		e.noErr(waitFor("two restarts", func() bool { return e.docker("logs", id).stdout == "run\nrun\nrun\n" }))
		e.want("exit code", e.ok("wait", id), "4")
		e.want("restarts", e.inspect(id, ".RestartCount"), "2")
	})
}
