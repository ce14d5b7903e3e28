package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// standby starts boxlite standby and waits until its VMs are ready.
func (h *hand) standby(vms int) *session {
	h.Helper()
	s := h.startStandby(vms)
	for range vms {
		s.expect(" ready\n")
	}
	return s
}

func (h *hand) startStandby(vms int) *session {
	h.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	argv := h.argv("standby", "--vms", strconv.Itoa(vms))
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = h.vars
	return startSession(h.T, cmd, cancel)
}

// end ends it as a service manager does.
func (h *hand) endStandby(s *session) {
	h.Helper()
	h.noErr(s.cmd.Process.Signal(syscall.SIGTERM))
	h.want("status of standby", fmt.Sprint(s.end()), "0")
}

// keepers are the pids in the names of the sockets where VMs are to be had.
func (h *hand) keepers(templates string) (pids []int) {
	h.Helper()
	sockets, err := filepath.Glob(templates + "/standby/*-*.sock")
	h.noErr(err)
	for _, path := range sockets {
		_, number, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".sock"), "-")
		pids = append(pids, h.number(number))
	}
	return pids
}

func (h *hand) number(text string) int {
	h.Helper()
	n, err := strconv.Atoi(text)
	h.noErr(err)
	return n
}

// oneKeeper is the pid of the only one.
func (h *hand) oneKeeper(templates string) int {
	h.Helper()
	pids := h.keepers(templates)
	if len(pids) != 1 {
		h.Fatalf("keepers %v, want one", pids)
	}
	return pids[0]
}

// isOf says that the process is one of the container's on the host.
func (h *hand) isOf(b bundle, pid int) bool {
	_, is := h.processesOf(b)[pid]
	return is
}

// A VM that stood by becomes the container's, with all its processes, and another one takes its place. It does not need
// what had it stand by.
func TestStandbyLife(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		templates := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(templates)
		service := h.standby(1)
		first := h.oneKeeper(templates)

		b := h.bundle("standby", "echo works; cat", nil)
		c := h.create(b)
		if h.state(b.id).Template == "" {
			h.Error("the state names no template")
		}
		if !h.isOf(b, first) {
			h.Errorf("keeper %d is not in the container's cgroup: %v", first, h.processesOf(b))
		}
		qemu := strings.TrimSpace(h.shOut(fmt.Sprintf("cat /proc/%d/task/*/children", first)))
		h.wantPart("the keeper's child", h.processesOf(b)[h.number(qemu)], "qemu-system")
		for _, ns := range []string{"pid", "net", "ipc", "uts", "mnt"} {
			if theirs := h.shOut("readlink /proc/" + qemu + "/ns/" + ns); theirs == h.shOut("readlink /proc/self/ns/"+ns) {
				h.Errorf("QEMU is in the host's %s", strings.TrimSpace(theirs))
			}
		}
		h.want("processes of the container", h.must("ps", "--format", "json", b.id), fmt.Sprintf("[%d]\n", c.pid))
		service.expect(" ready\n")
		if second := h.oneKeeper(templates); second == first {
			h.Errorf("keeper %d twice", first)
		}
		c.start()
		h.want("end", c.end().String(), "exit code 0")
		h.want("stdout", c.out.wait(), "works\n")
		h.must("delete", b.id)
		h.wantNoProcess(b)
		if !processGone(strconv.Itoa(first)) {
			h.Errorf("keeper %d is still there", first)
		}

		// The service ends: so do its VMs, but not those that are containers'.
		b = h.bundle("survivor", "sleep 1000", nil)
		second := h.oneKeeper(templates)
		c = h.create(b)
		c.start()
		service.expect(" ready\n")
		h.endStandby(service)
		h.want("keepers afterwards", fmt.Sprint(h.keepers(templates)), "[]")
		h.want("exec", h.must("exec", b.id, "echo", "lives"), "lives\n")
		if !h.isOf(b, second) {
			h.Errorf("keeper %d is not in the container's cgroup: %v", second, h.processesOf(b))
		}
		// Nothing of a VM outlives the monitor.
		h.noErr(syscall.Kill(c.pid, syscall.SIGKILL))
		h.want("end", c.end().String(), "killed by killed")
		h.wantNoProcess(b)
		h.must("delete", b.id)
		c.out.wait()
	})
}

// A container that loses its keeper has ended; a keeper that nobody had needed yet is replaced, and its socket keeps nobody.
func TestStandbyKeeperKilled(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		templates := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(templates)
		service := h.standby(1)
		h.noErr(syscall.Kill(h.oneKeeper(templates), syscall.SIGKILL))
		service.expect("its keeper ended")
		service.expect(" ready\n")
		for _, when := range []string{"created", "running"} {
			before := h.keepers(templates)
			b := h.bundle("keeper-"+when, "sleep 1000", nil)
			c := h.create(b)
			if when == "running" {
				c.start()
			}
			killed := 0
			for _, pid := range before {
				if h.isOf(b, pid) {
					h.noErr(syscall.Kill(pid, syscall.SIGKILL))
					killed++
				}
			}
			h.want("keepers of the container", fmt.Sprint(killed), "1")
			if end := c.end(); end.Code == 0 {
				h.Errorf("keeper killed when %s: the stand-in's %s", when, end)
			}
			h.waitStatus(b.id, specs.StateStopped)
			h.wantNoProcess(b)
			h.must("delete", b.id)
			c.out.wait()
			service.expect(" ready\n")
			h.want("sockets", fmt.Sprint(len(h.keepers(templates))), "1")
		}
		// Both are killed, and what is left of them is in nobody's way.
		h.noErr(service.cmd.Process.Signal(syscall.SIGSTOP))
		h.noErr(syscall.Kill(h.oneKeeper(templates), syscall.SIGKILL))
		h.noErr(service.cmd.Process.Kill())
		service.end()
		h.want("sockets", fmt.Sprint(len(h.keepers(templates))), "1")
		from, stderr := h.startedFrom(h.bundle("after", "echo works", nil))
		h.want("what is said", stderr, "")
		if from == "" {
			h.Error("the container has booted")
		}
		h.want("sockets", fmt.Sprint(len(h.keepers(templates))), "0")
	})
}

// Several want the one VM: one gets it, the others start from the template; and each VM is like no other.
func TestStandbyAtOnce(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		templates := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(templates)
		service := h.standby(2)
		keepers := h.keepers(templates)
		const n = 4
		bundles := make([]bundle, n)
		made := make([]*created, n)
		for i := range bundles {
			bundles[i] = h.bundle(fmt.Sprint("at-once-", i), "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1", nil)
		}
		done := make(chan struct{})
		for i, b := range bundles {
			go func() {
				defer func() { done <- struct{}{} }()
				made[i] = h.create(b)
			}()
		}
		for range bundles {
			<-done
		}
		if h.Failed() {
			h.FailNow()
		}
		taken := 0
		for _, b := range bundles {
			for _, pid := range keepers {
				if h.isOf(b, pid) {
					taken++
				}
			}
		}
		h.want("containers with one of the VMs", fmt.Sprint(taken), fmt.Sprint(len(keepers)))
		seen := map[string]bool{}
		for i, c := range made {
			c.start()
			h.want("end", c.end().String(), "exit code 0")
			for line := range strings.Lines(c.out.wait()) {
				if seen[line] {
					h.Errorf("container %d says %q, as another one does", i, line)
				}
				seen[line] = true
			}
			h.must("delete", bundles[i].id)
		}
		h.want("different lines", fmt.Sprint(len(seen)), fmt.Sprint(2*n))
		for range keepers {
			service.expect(" ready\n")
		}
		h.endStandby(service)
	})
}

// Under Docker, with network, volume and limits; a container of another shape does not take it.
func TestStandbyUnderDocker(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := h.diskDir()
		templates := "/run/boxlite-templates"
		service := h.standby(1)
		keeper := h.oneKeeper(templates)
		e.runOK("--memory", "100m", "busybox", "true")
		h.want("keeper after another shape", fmt.Sprint(h.oneKeeper(templates)), fmt.Sprint(keeper))
		e.runOK("--network", "host", "busybox", "true") // whose QEMU has to be in the host's network
		h.want("keeper after the host's network", fmt.Sprint(h.oneKeeper(templates)), fmt.Sprint(keeper))

		s := e.session(e.runArgs("--name", "ready", "-v", dir+":/data", "--pids-limit", "50", "busybox", "sh", "-c",
			"ip -o -4 addr show eth0 | wc -l; cat /sys/fs/cgroup/pids.max; date +%s >/data/now; echo up; exec sleep 1000")...)
		h.want("addresses of eth0", s.expect("\n"), "1\n")
		h.want("limit", s.expect("\n"), "50\n")
		s.expect("up\n")
		b := bundle{id: e.inspect("ready", ".Id")}
		if !h.isOf(b, keeper) {
			h.Errorf("keeper %d is not in the container's cgroup: %v", keeper, h.processesOf(b))
		}
		h.want("docker top", strconv.Itoa(strings.Count(e.ok("top", "ready"), "\n")), "1")
		h.want("exec", e.ok("exec", "ready", "cat", "/data/now"), strings.TrimSpace(h.shOut("cat "+dir+"/now")))
		e.ok("update", "--pids-limit", "60", "ready")
		h.want("limit after update", e.ok("exec", "ready", "cat", "/sys/fs/cgroup/pids.max"), "60")
		e.ok("kill", "ready")
		h.want("status", fmt.Sprint(s.end()), "137")
		service.expect(" ready\n")
		h.endStandby(service)
	})
}

// A keeper that is killed before its VM is ready ends what started it, with an error and without a trace.
func TestStandbyKeeperKilledEarly(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		templates := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(templates)
		h.must("template", "create", "--kernel", "lean")
		service := h.startStandby(1)
		var stages []string
		h.noErr(waitFor("a rehearsal", func() bool {
			stages, _ = filepath.Glob(templates + "/standby/rehearsal-*")
			return len(stages) == 1
		}))
		h.noErr(syscall.Kill(h.number(strings.TrimPrefix(filepath.Base(stages[0]), "rehearsal-")), syscall.SIGKILL))
		h.want("status of standby", fmt.Sprint(service.end()), "1")
		service.expect("it ended before its VM was ready")
		h.want("left", h.shOut("ls "+templates+"/standby"), "")
	})
}

func TestStandbyBadInput(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		h.withTemplates(filepath.Join(h.diskDir(), "templates"))
		h.wantFail(`--vms 0`, "standby", "--vms", "0")
		h.wantFail(`kernel`, "standby", "--kernel", "huge")
		h.wantFail(`memory`, "standby", "--memory", "1")
		h.flags[1] = "off"
		h.wantFail(`templates are switched off`, "standby")
	})
}
