package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The process whose pid is reported is killed from outside: the container is stopped, by itself, and can be deleted.
func TestStandInKilled(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		for _, when := range []string{"created", "running", "exec"} {
			b := h.bundle("killed-"+when, "echo up; sleep 1000", nil)
			c := h.create(b)
			var x *reaper
			if when != "created" {
				c.start()
			}
			if when == "exec" {
				x = startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pid-file", b.dir+"/exec-pid", b.id, "sleep", "1000"), Env: h.vars, Dir: "/"}, [3]*os.File{})
				h.want("exec", x.wait(0).String(), "exit code 0")
			}
			h.noErr(syscall.Kill(c.pid, syscall.SIGKILL))
			h.want(when+": end", c.end().String(), "killed by killed")
			h.waitStatus(b.id, specs.StateStopped)
			h.want(when+": what start says", fmt.Sprint(h.cmd("start", b.id).code), "1")
			if x != nil {
				x.wait(h.readPid(b.dir + "/exec-pid"))
			}
			h.must("delete", b.id)
			h.wantNoProcess(b)
			c.out.wait() // nobody holds its output
		}
	})
}

// An exec's stand-in that is killed takes its process along and nothing else.
func TestExecStandInKilled(t *testing.T) {
	eachRuntime(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("exec-killed", "sleep 1000", nil)
		h.create(b).start()
		x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pid-file", b.dir+"/exec-pid", b.id, "tail", "-f", "/dev/null"), Env: h.vars, Dir: "/"}, [3]*os.File{})
		h.want("exec", x.wait(0).String(), "exit code 0")
		pid := h.readPid(b.dir + "/exec-pid")
		h.wantCode(h.cmd("exec", b.id, "pidof", "tail"), 0)
		h.noErr(syscall.Kill(pid, syscall.SIGKILL))
		x.wait(pid)
		if err := waitFor("its process ends", func() bool {
			return h.cmd("exec", b.id, "pidof", "tail").code == 1
		}); err != nil {
			h.Error(err)
		}
		h.wantStatus(b.id, specs.StateRunning)
	})
}

// processesOf lists the host's processes in the container's cgroup by name.
func (h *hand) processesOf(b bundle) map[int]string {
	h.Helper()
	found := map[int]string{}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	h.noErr(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), "/"+b.id+"\n") {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		h.noErr(err)
		found[pid] = strings.TrimSpace(string(comm))
	}
	return found
}

func (h *hand) wantNoProcess(b bundle) {
	h.Helper()
	if err := waitFor("the container's processes end", func() bool { return len(h.processesOf(b)) == 0 }); err != nil {
		h.Errorf("%v: %v", err, h.processesOf(b))
	}
}

// killByName kills the container's processes whose name begins so, and says how many there were.
func (h *hand) killByName(b bundle, name string) int {
	h.Helper()
	n := 0
	for pid, comm := range h.processesOf(b) {
		if strings.HasPrefix(comm, name) {
			n++
			_ = syscall.Kill(pid, syscall.SIGKILL) // virtiofsd is two that end together
		}
	}
	return n
}

// A VM that loses a part of itself is a container that has ended: not with 0, in every state. The log and whoever waits for
// a process in it hear which part, and how it ended.
func TestPartsKilled(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		for part, name := range map[string]string{"qemu-system": "QEMU", "virtiofsd": "virtiofsd"} {
			for _, when := range []string{"created", "running"} {
				b := h.bundle(part+"-"+when, "echo up; sleep 1000", nil)
				log := filepath.Join(b.dir, "log")
				h.flags = []string{"--log", log}
				c := h.create(b)
				h.flags = nil
				var x *session
				if when == "running" {
					c.start()
					ctx, cancel := context.WithTimeout(context.Background(), deadline)
					argv := h.argv("exec", b.id, "sh", "-c", "echo in; exec sleep 1000")
					x = startSession(h.T, exec.CommandContext(ctx, argv[0], argv[1:]...), cancel)
					x.expect("in\n")
				}
				if h.killByName(b, part) == 0 {
					h.Fatalf("no %s in the container's cgroup: %v", part, h.processesOf(b))
				}
				if end := c.end(); end.Code == 0 {
					h.Errorf("%s killed when %s: the stand-in's %s", part, when, end)
				}
				h.waitStatus(b.id, specs.StateStopped)
				h.wantNoProcess(b)
				text, err := os.ReadFile(log)
				h.noErr(err)
				if !regexp.MustCompile(`(?m)level=error msg="` + name + ` has ended" .*status="signal: killed"`).Match(text) {
					h.Errorf("%s killed when %s: log: %s", part, when, text)
				}
				if x != nil {
					x.expect(name + ": signal: killed")
					if code := x.end(); code != 255 {
						h.Errorf("%s killed: exec ends with %d, want 255", part, code)
					}
				}
				h.must("delete", b.id)
				c.out.wait()
			}
		}
	})
}

func TestPartsKilledUnderDocker(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		s := e.session(e.runArgs("--name", "victim", "busybox", "sh", "-c", "echo up; exec sleep 1000")...)
		s.expect("up\n")
		x := e.session("exec", "victim", "sh", "-c", "echo in; exec sleep 1000")
		x.expect("in\n")
		if h.killByName(bundle{id: e.inspect("victim", ".Id")}, "qemu-system") == 0 {
			e.Fatal("no qemu-system in the container's cgroup")
		}
		if code := s.end(); code <= 0 {
			e.Errorf("docker run ended with %d, want an error", code)
		}
		if code := x.end(); code <= 0 {
			e.Errorf("docker exec ended with %d, want an error", code)
		}
	})
}

// create is killed on its way: delete --force removes what there is of the container.
func TestCreateKilled(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		for _, after := range []time.Duration{20, 100, 250, 500, 800, 1200} {
			b := h.bundle(fmt.Sprintf("create-killed-%d", after), "true", nil)
			cmd := h.cmdline("create", "--bundle", b.dir, b.id)
			h.noErr(cmd.Start())
			time.Sleep(after * time.Millisecond) // a moment of its work, whichever it is
			_ = cmd.Process.Kill()               // it may have ended
			_ = cmd.Wait()
			h.must("delete", "--force", b.id)
			h.wantNoProcess(b)
			h.wantFail("container does not exist", "state", b.id)
		}
	})
}

// Of several delete --force at once, and of one while run ends, none fails, and nothing is left.
func TestDeletedByManyAtOnce(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		for i := range 5 {
			b := h.bundle(fmt.Sprintf("deleted-%d", i), "echo up; exec sleep 1000", nil)
			argv := h.argv("run", "--bundle", b.dir, b.id)
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			s := startSession(h.T, exec.CommandContext(ctx, argv[0], argv[1:]...), cancel)
			s.expect("up\n")
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					if r := h.cmd("delete", "--force", b.id); r.code != 0 {
						h.Errorf("delete --force: exit status %d: %s", r.code, r.stderr)
					}
				})
			}
			all.Wait()
			s.end()
			h.wantNoProcess(b)
			if _, err := os.Lstat(filepath.Join(h.root, b.id)); !os.IsNotExist(err) {
				h.Errorf("state directory of a deleted container: %v", err)
			}
		}
	})
}

// The container does to itself what it can; its runtime survives and says how it ended.
func TestContainerHarmsItself(t *testing.T) {
	eachVM(t, func(e *env) {
		for name, script := range map[string]string{
			"panic":   "echo c >/proc/sysrq-trigger; sleep 1000",
			"reboot":  "echo b >/proc/sysrq-trigger; sleep 1000",
			"off":     "echo o >/proc/sysrq-trigger; sleep 1000",
			"console": "echo 1 >/proc/sys/kernel/sysrq; cat /dev/urandom | head -c 1000000 >/dev/kmsg; exit 7",
		} {
			s := e.session(e.runArgs("-i", "--privileged", "busybox", "sh", "-c", "echo up; read go; "+script)...)
			s.expect("up\n") // what the guest still holds ends with it
			began := time.Now()
			s.send("go\n")
			if code := s.end(); code <= 0 || code == 125 || time.Since(began) > time.Minute {
				e.Errorf("%s: exit code %d after %v", name, code, time.Since(began))
			}
		}
	})
}
