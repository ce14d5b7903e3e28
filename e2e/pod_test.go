package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A pod by hand is what containerd's CRI makes of one: a sandbox, and members in its namespaces.
type handPod struct {
	*hand
	sandbox *created
	shm     string // the host's tmpfs at everybody's /dev/shm
}

// pod makes the sandbox, with the network that inMadeNetwork makes, and starts it.
func (h *hand) pod(edit func(*specs.Spec)) *handPod {
	h.Helper()
	p := &handPod{hand: h, shm: filepath.Join(workDir, "shm")}
	h.shOut("mkdir " + p.shm + "; mount -t tmpfs -o size=1m,mode=1777 shm " + p.shm)
	b := h.inMadeNetwork("sandbox", "true")
	h.Cleanup(func() {
		h.must("delete", "--force", b.id)
		h.shOut("umount " + p.shm + "; rmdir " + p.shm)
	})
	spec := defaultSpec(b.id, "probe", "signals")
	joinNetwork(spec)
	spec.Hostname = "of-the-pod"
	spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": b.id}
	p.bindShm(spec)
	if edit != nil {
		edit(spec)
	}
	h.writeSpec(b, spec)
	p.sandbox = h.create(b)
	p.sandbox.start()
	h.expect(p.sandbox.out, "ready\n")
	return p
}

func (p *handPod) bindShm(s *specs.Spec) {
	for i := range s.Mounts {
		if s.Mounts[i].Destination == "/dev/shm" {
			s.Mounts[i] = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: p.shm, Options: []string{"rbind"}}
		}
	}
}

// member is a bundle for one more container, with these namespaces of the sandbox's beside the network.
func (p *handPod) member(name, script string, common []specs.LinuxNamespaceType, edit func(*specs.Spec)) bundle {
	p.Helper()
	return p.bundle(name, script, func(s *specs.Spec) {
		s.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": p.sandbox.id}
		joinNetwork(s)
		s.Hostname = "of-the-pod"
		p.bindShm(s)
		for i := range s.Linux.Namespaces {
			for _, kind := range common {
				if ns := &s.Linux.Namespaces[i]; ns.Type == kind {
					ns.Path = fmt.Sprintf("/proc/%d/ns/%s", p.sandbox.pid, kind)
				}
			}
		}
		if edit != nil {
			edit(s)
		}
	})
}

var ipcAndUTS = []specs.LinuxNamespaceType{specs.IPCNamespace, specs.UTSNamespace}

// Two containers of a pod have localhost, shared memory and the host name in common, and no files.
func TestPodOfTwo(t *testing.T) {
	eachRuntime(t, func(e *env) {
		p := e.byHand().pod(nil)
		web := p.create(p.member("web", `
mkdir /www; echo page >/www/index.html; echo shared >/dev/shm/file; httpd -p 127.0.0.1:80 -h /www; echo serving; sleep 1000`, ipcAndUTS, nil))
		web.start()
		p.expect(web.out, "serving\n")
		client := p.create(p.member("client", `
wget -qO- http://127.0.0.1/; cat /dev/shm/file; hostname; ping -c 1 -W 20 192.0.2.1 >/dev/null && echo pinged
ls /www 2>/dev/null; echo pids $(ps | grep -c 'sleep 1000$'); exit 7`, ipcAndUTS, nil))
		client.start()
		p.want("end", client.end().String(), "exit code 7")
		p.want("stdout", client.out.wait(), "page\nshared\nof-the-pod\npinged\npids 0\n")
		p.want("stderr", client.errs.wait(), "")
		p.must("delete", client.id)
		// One that has gone may come again, with processes in common this time.
		again := p.create(p.member("again", "echo processes $(ps | grep -c '[p]robe signals'); exit 3", append(ipcAndUTS, specs.PIDNamespace), nil))
		again.start()
		p.want("end", again.end().String(), "exit code 3")
		p.want("stdout", again.out.wait(), "processes 1\n")
		p.must("delete", again.id)
		p.wantStatus(web.id, specs.StateRunning)
		p.want("exec in the other", p.must("exec", web.id, "cat", "/dev/shm/file"), "shared\n")
		if e.rt.isVM() {
			p.want("QEMUs of the pod", p.vms(), "1")
		}
	})
}

// vms counts the QEMUs of this run's host.
func (p *handPod) vms() string {
	p.Helper()
	return strings.TrimSpace(p.shOut("ps -e -o args= | grep -c '[q]emu-system.*memory-backend'"))
}

// What is a container's own is so for a pod's.
func TestPodMembersApart(t *testing.T) {
	eachRuntime(t, func(e *env) {
		p := e.byHand().pod(nil)
		limit, pids := int64(64<<20), int64(40)
		limited := p.create(p.member("limited", "exec probe signals", ipcAndUTS, func(s *specs.Spec) {
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
			s.Process.Capabilities.Effective = []string{"CAP_KILL"}
			s.Process.Capabilities.Permitted = []string{"CAP_KILL"}
			s.Root.Readonly = true
		}))
		free := p.create(p.member("free", "exec probe signals", nil, nil))
		for _, c := range []*created{limited, free} {
			c.start()
			p.expect(c.out, "ready\n")
		}
		p.want("capabilities", p.must("exec", limited.id, "sh", "-c", "grep CapEff /proc/1/status | cut -f2"), "0000000000000020\n")
		p.wantCode(p.cmd("exec", limited.id, "touch", "/file"), 1)
		p.must("exec", free.id, "touch", "/file")
		if r := p.cmd("exec", limited.id, "sh", "-c", "tail /dev/zero"); r.code != 137 && r.code != 1 {
			p.Errorf("a process beyond the memory limit: %s", r)
		}

		// Signals, pause and kill are one container's.
		p.must("kill", limited.id, "USR1")
		p.expect(limited.out, "SIGUSR1\n")
		p.must("pause", limited.id)
		p.wantStatus(limited.id, "paused")
		r := p.cmd("exec", limited.id, "true")
		p.wantCode(r, 255)
		p.wantPart("stderr", r.stderr, "cannot exec in a paused container")
		p.want("exec in another", p.must("exec", free.id, "echo", "alive"), "alive\n")
		p.must("pause", p.sandbox.id)
		p.want("exec in another", p.must("exec", free.id, "echo", "alive"), "alive\n")
		for _, id := range []string{p.sandbox.id, limited.id} {
			p.must("resume", id)
		}
		p.must("exec", limited.id, "true")
		p.wantPart("events --stats", p.must("events", "--stats", limited.id), `,"limit":40}`)

		// The death of a stand-in takes one container.
		p.noErr(syscall.Kill(limited.pid, syscall.SIGKILL))
		limited.end()
		p.want("stdout ends", limited.out.wait(), "ready\nSIGUSR1\n")
		p.waitStatus(limited.id, specs.StateStopped)
		p.must("delete", limited.id)
		p.wantStatus(free.id, specs.StateRunning)
		p.must("kill", free.id, "KILL")
		free.wantKilled()
		p.must("delete", free.id)
		p.wantStatus(p.sandbox.id, specs.StateRunning)
		p.must("kill", p.sandbox.id)
		p.want("the sandbox's end", p.sandbox.end().String(), "exit code 5")
	})
}

// The VM is in the cgroup of the sandbox, whose own limit leaves room for what its members may use.
func TestPodRoomForMembers(t *testing.T) {
	eachRuntime(t, func(e *env) {
		limit := func(mib int64) func(*specs.Spec) {
			return func(s *specs.Spec) { s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(mib << 20)} }
		}
		p := e.byHand().pod(limit(64))
		large := p.create(p.member("large", "probe hog 512 | tail -n 1; exec sleep 1000", ipcAndUTS, limit(560)))
		large.start()
		p.expect(large.out, "touched 512\n")
		// An update of the sandbox leaves the room as it is, and one of a member makes some.
		p.must("update", "--memory", "80m", p.sandbox.id)
		p.must("update", "--memory", "800m", large.id)
		p.want("stdout of exec", p.must("exec", large.id, "sh", "-c", "probe hog 720 | tail -n 1"), "touched 720\n")
		p.must("delete", "--force", large.id)
		p.wantStatus(p.sandbox.id, specs.StateRunning)
	})
}

// The VM goes with the sandbox, and the members with the VM.
func TestPodEndsWithItsSandbox(t *testing.T) {
	for signal, want := range map[string]string{"TERM": "exit code 255", "KILL": "exit code 137"} {
		t.Run(signal, func(t *testing.T) {
			eachVM(t, func(e *env) {
				p := e.byHand().pod(nil)
				started := p.create(p.member("started", "echo ready; sleep 1000", ipcAndUTS, nil))
				waiting := p.create(p.member("waiting", "true", ipcAndUTS, nil))
				started.start()
				p.expect(started.out, "ready\n")
				p.must("kill", p.sandbox.id, signal)
				for _, c := range []*created{started, waiting} {
					p.want("end of "+c.id, c.end().String(), want)
				}
				p.must("delete", "--force", p.sandbox.id)
				p.must("delete", started.id)
				p.must("delete", waiting.id)
			})
		})
	}
}

// What cannot be a member is told why, and leaves nothing.
func TestPodMistakes(t *testing.T) {
	eachVM(t, func(e *env) {
		p := e.byHand().pod(nil)
		p.noErr(os.MkdirAll(p.root+"/runcs", 0o711))
		stopped := p.create(p.bundle("stopped", "true", nil))
		stopped.start()
		stopped.end()
		for name, c := range map[string]struct {
			edit func(*specs.Spec)
			want string
		}{
			"missing": {func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-id"] = "nobody" }, "the pod's sandbox, nobody, is not a container of boxlite's below /run/byhand"},
			"foreign": {func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-id"] = "runcs" }, "the pod's sandbox, runcs, is not a container of boxlite's"},
			"stopped": {func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-id"] = stopped.id }, "the pod's sandbox, " + stopped.id + ", has stopped"},
			"kernel": {func(s *specs.Spec) {
				s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_NET_ADMIN")
			}, "annotation boxlite.kernel=net"},
			"mount": {func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "bind", Source: "/nonesuch", Options: []string{"bind"}})
			}, "/nonesuch"},
			"no-program": {func(s *specs.Spec) { s.Process.Args = []string{"nonesuch"} }, "nonesuch"},
		} {
			b := p.member("bad-"+name, "true", ipcAndUTS, c.edit)
			p.wantFail(c.want, "create", "--bundle", b.dir, b.id)
			p.wantFail("container does not exist", "state", b.id)
		}
		p.noErr(os.Remove(p.root + "/runcs"))
		p.want("exec in the sandbox", p.must("exec", p.sandbox.id, "ls", "/dev/shm"), "")
	})
}

// A member that has gone leaves nothing in the VM that goes on, or of it on the host, however it went.
func TestPodForgets(t *testing.T) {
	eachVM(t, func(e *env) {
		p := e.byHand().pod(nil)
		b := p.member("crashes", "ls /bin >/dev/null; echo ready; sleep 1000", ipcAndUTS, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: e.diskDir(), Options: []string{"rbind"}})
		})
		look := func() string {
			return p.shOut(fmt.Sprintf(`
worker=$(for p in $(pgrep -P %d); do pgrep -P $p || :; done)
echo files of virtiofsd $(ls /proc/$worker/fd | wc -l)
echo mounts $(wc -l </proc/$worker/mountinfo) $(ls /proc/$worker/root/members)
echo files of the monitor $(ls /proc/%[1]d/fd | wc -l)`, p.sandbox.pid)) + p.must("exec", p.sandbox.id, "sh", "-c", "wc -l </proc/self/mountinfo; ls /sys/fs/cgroup | wc -l")
		}
		before := ""
		for round := range 7 {
			c := p.create(b)
			c.start()
			p.expect(c.out, "ready\n")
			switch round % 3 {
			case 0:
				p.noErr(syscall.Kill(c.pid, syscall.SIGKILL))
			case 1:
				p.must("kill", b.id, "KILL")
			}
			r := p.cmd("delete", "--force", b.id)
			p.wantCode(r, 0)
			p.want("stderr of delete", r.stderr, "")
			c.end()
			after := look()
			if round > 1 && after != before { // until then it comes to know the sandbox's own files
				p.Errorf("after round %d: %s, before: %s", round, after, before)
			}
			before = after
		}
	})
}

// Members with the same directory have the same files, not only the same content: they meet at a socket in it. A volume
// stays for as long as somebody has it.
func TestPodVolume(t *testing.T) {
	eachRuntime(t, func(e *env) {
		p := e.byHand().pod(nil)
		dir := e.diskDir()
		with := func(options ...string) func(*specs.Spec) {
			return func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: dir, Options: append([]string{"rbind", "rprivate"}, options...)})
			}
		}
		holds := p.create(p.member("holds", "exec probe serve unix /volume/socket", ipcAndUTS, with()))
		holds.start()
		p.expect(holds.out, "listening\n")
		for round := range 2 { // the first goes while the other has the volume
			name := "tries-" + itoa(round)
			tries := p.create(p.member(name, "probe dial unix /volume/socket met; echo written >/volume/file", ipcAndUTS, with()))
			tries.start()
			p.want("end", tries.end().String(), "exit code 0")
			p.want("stdout at the socket's other end", tries.out.wait(), "met\n")
			r := p.cmd("delete", tries.id)
			p.wantCode(r, 0)
			p.want("stderr of delete", r.stderr, "")
			p.want("the file as the first sees it", p.must("exec", holds.id, "cat", "/volume/file"), "written\n")
		}
		reads := p.create(p.member("reads", "cat /volume/file; echo x >/volume/not", nil, with("ro")))
		reads.start()
		p.want("end", reads.end().String(), "exit code 1")
		p.want("the file as a reader sees it", reads.out.wait(), "written\n")
		p.wantPart("stderr", reads.errs.wait(), "Read-only file system")
		p.must("delete", reads.id)
		p.must("delete", "--force", holds.id)
		if e.rt.isVM() {
			p.want("volumes left", p.shOut(fmt.Sprintf("for p in $(pgrep -P %d); do ls /proc/$p/root/volumes 2>/dev/null || :; done", p.sandbox.pid)), "")
		}
	})
}

// Mounts that the host makes below a member's volume show and go as those of any container do.
func TestPodMountsMadeLater(t *testing.T) {
	eachRuntime(t, func(e *env) {
		p := e.byHand().pod(nil)
		dir := p.sharedMount()
		p.noErr(os.Mkdir(filepath.Join(dir, "late"), 0o755))
		c := p.create(p.member("later", "sleep 1000", ipcAndUTS, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: dir, Options: []string{"rbind", "rslave"}})
		}))
		c.start()
		look := func(want string) {
			p.Helper()
			// A mount that goes between ls's two questions makes ls fail, once.
			if err := waitFor(fmt.Sprintf("the volume has %q", want), func() bool {
				r := p.cmd("exec", c.id, "ls", "/volume/late")
				return r.code == 0 && r.stdout == want
			}); err != nil {
				p.Error(err)
			}
		}
		look("")
		p.mountAt(filepath.Join(dir, "late"))
		look("f\n")
		var late unix.Stat_t
		p.noErr(unix.Stat(filepath.Join(dir, "late"), &late))
		p.noErr(unix.Unmount(filepath.Join(dir, "late"), 0))
		look("")
		p.wantUnused(p.sandbox.pid, late.Dev)
		p.must("delete", "--force", c.id)
	})
}

// What the host changes is told to the member that watches it: in its own files, in a volume that it has in common with another,
// and in that one's absence.
func TestPodFileEvents(t *testing.T) {
	eachRuntime(t, func(e *env) {
		p := e.byHand().pod(nil)
		common, conf := e.diskDir(), filepath.Join(e.diskDir(), "conf")
		p.noErr(os.WriteFile(conf, []byte("old"), 0o644))
		with := func(mounts ...specs.Mount) func(*specs.Spec) {
			return func(s *specs.Spec) { s.Mounts = append(s.Mounts, mounts...) }
		}
		bind := func(source, destination string) specs.Mount {
			return specs.Mount{Destination: destination, Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}}
		}
		goes := p.create(p.member("goes", "exec probe watch /v", ipcAndUTS, with(bind(common, "/v"))))
		stays := p.create(p.member("stays", "exec probe watch /w /conf /home", ipcAndUTS, with(bind(common, "/w"), bind(conf, "/conf"))))
		marks := 0
		// told waits until the members are told of a change that is made again and again: a VM's host comes to know of a
		// watch shortly after it was made.
		told := func(dir string, members map[*created]string) {
			p.Helper()
			p.noErr(waitFor("events of "+dir, func() bool {
				marks++
				name := "mark-" + itoa(marks)
				p.noErr(os.Mkdir(filepath.Join(dir, name), 0o700))
				defer func() { p.noErr(os.Remove(filepath.Join(dir, name))) }()
				for giveUp := time.Now().Add(time.Second); time.Now().Before(giveUp); time.Sleep(20 * time.Millisecond) {
					missing := 0
					for c, inside := range members {
						if !strings.Contains(c.out.sofar(), "mkdir "+inside+"/"+name+"\n") {
							missing++
						}
					}
					if missing == 0 {
						return true
					}
				}
				return false
			}))
		}
		for _, c := range []*created{goes, stays} {
			c.start()
			p.expect(c.out, "watching\n")
		}
		told(common, map[*created]string{goes: "/v", stays: "/w"})
		told(stays.bundle.rootfs("home"), map[*created]string{stays: "/home"})
		p.noErr(os.WriteFile(conf, []byte("newer"), 0o644))
		p.expect(stays.out, "modify /conf\n")
		p.noErr(os.WriteFile(filepath.Join(common, "file"), []byte("x"), 0o644))
		p.expect(goes.out, "create /v/file\nmodify /v/file\nclose /v/file\n")
		p.expect(stays.out, "create /w/file\nmodify /w/file\nclose /w/file\n")

		p.must("delete", "--force", goes.id)
		told(common, map[*created]string{stays: "/w"})
		later := p.create(p.member("later", "exec probe watch /x", ipcAndUTS, with(bind(common, "/x"))))
		later.start()
		p.expect(later.out, "watching\n")
		told(common, map[*created]string{stays: "/w", later: "/x"})
	})
}

// A VM that loses a part of itself takes all members with it. What is left of them can be removed in any order.
func TestPodPartsKilled(t *testing.T) {
	for _, part := range []string{"qemu-system", "virtiofsd", "monitor"} {
		t.Run(part, func(t *testing.T) {
			eachVM(t, func(e *env) {
				p := e.byHand().pod(nil)
				one := p.create(p.member("one", "echo ready; sleep 1000", ipcAndUTS, nil))
				two := p.create(p.member("two", "true", ipcAndUTS, nil))
				one.start()
				p.expect(one.out, "ready\n")
				x := startSession(p.T, p.cmdline("exec", one.id, "sh", "-c", "echo in; exec sleep 1000"), func() {})
				x.expect("in\n")
				if part == "monitor" {
					p.noErr(syscall.Kill(p.sandbox.pid, syscall.SIGKILL))
				} else if p.killByName(p.sandbox.bundle, part) == 0 {
					p.Fatalf("no %s in the sandbox's cgroup", part)
				}
				for _, c := range []*created{one, two} {
					if end := c.end(); end.Code == 0 {
						p.Errorf("the stand-in of %s: %s", c.id, end)
					}
					p.waitStatus(c.id, specs.StateStopped)
					p.wantNoProcess(c.bundle)
				}
				if code := x.end(); code <= 0 {
					p.Errorf("exec ended with %d, want an error", code)
				}
				p.waitStatus(p.sandbox.id, specs.StateStopped)
				p.wantFail("the pod's sandbox, "+p.sandbox.id+", has stopped", "create", "--bundle", p.member("late", "true", ipcAndUTS, nil).dir, tag+"-late")
				p.must("delete", one.id)
				p.must("delete", p.sandbox.id)
				p.must("delete", two.id)
			})
		})
	}
}

// delete --force takes a pod's containers in any order, while they run, and leaves nothing.
func TestPodDeletedInAnyOrder(t *testing.T) {
	for place, name := range []string{"sandbox first", "sandbox between", "sandbox last"} {
		t.Run(name, func(t *testing.T) {
			eachRuntime(t, func(e *env) {
				p := e.byHand().pod(nil)
				volume := e.diskDir()
				with := func(s *specs.Spec) {
					s.Mounts = append(s.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind", "rprivate"}})
				}
				order := []*created{}
				for _, name := range []string{"one", "two"} {
					c := p.create(p.member(name, "echo ready; sleep 1000", ipcAndUTS, with))
					c.start()
					p.expect(c.out, "ready\n")
					order = append(order, c)
				}
				for _, c := range slices.Insert(order, place, p.sandbox) {
					r := p.cmd("delete", "--force", c.id)
					p.wantCode(r, 0)
					p.want("stderr of delete", r.stderr, "")
					p.wantFail("container does not exist", "state", c.id)
					p.wantNoProcess(c.bundle)
				}
			})
		})
	}
}

// A member has a terminal, and an exec that waits for the end of its pause alone.
func TestPodTerminalAndPause(t *testing.T) {
	eachRuntime(t, func(e *env) {
		p := e.byHand().pod(nil)
		console := p.listenConsole()
		typed := p.create(p.member("typed", "stty -echo; echo ready; read x; echo got $x; exec sleep 1000", ipcAndUTS, func(s *specs.Spec) {
			s.Process.Terminal = true
		}), "--console-socket", console.path)
		terminal := &terminalReader{f: console.receive()}
		other := p.create(p.member("other", "exec probe signals", ipcAndUTS, nil))
		for _, c := range []*created{typed, other} {
			c.start()
		}
		terminal.until("ready\r\n")
		_, err := terminal.f.WriteString("a line\r")
		p.noErr(err)
		p.wantPart("the terminal", terminal.until("got a line\r\n"), "got a line\r\n")

		p.must("pause", typed.id)
		waits := startSession(p.T, p.cmdline("exec", "--ignore-paused", typed.id, "echo", "after the pause"), func() {})
		p.want("exec in the other", p.must("exec", other.id, "echo", "alive"), "alive\n")
		p.wantStatus(typed.id, "paused")
		p.want("exec --ignore-paused during the pause", waits.text(), "")
		p.must("resume", typed.id)
		waits.expect("after the pause")
		p.want("exit code of exec --ignore-paused", itoa(waits.end()), "0")
		p.must("kill", typed.id, "KILL")
		typed.wantKilled()
		p.wantStatus(other.id, specs.StateRunning)
	})
}
