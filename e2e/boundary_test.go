package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// SECURITY.md numbers the promises; these tests hold those about paths of the container, descriptors of the host and
// commands that fail half-way.

// escaped are the files of that prefix where the host's paths near a container are.
func escaped(h *hand, prefix string) []string {
	h.Helper()
	out := h.shOut("find / /run /tmp /dev -xdev -maxdepth 4 -name '" + prefix + "*' -not -path '*/bundle-*' 2>/dev/null || :")
	return strings.Fields(out)
}

// Somebody who shares a volume with the container exchanges a directory, again and again, with a link that leads out by a
// descriptor of whoever makes the mount points below it.
func TestMountPointsStayInTheRootfs(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		const mounts = 150
		b := h.bundle("flip", "exit 0", func(s *specs.Spec) {
			dir := filepath.Join(workDir, "bundle-flip")
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: dir + "/vol", Options: []string{"rbind"}})
			for i := range mounts {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: fmt.Sprintf("/vol/x/bxescaped%d", i), Type: "bind", Source: dir + "/a", Options: []string{"bind"}})
			}
		})
		h.noErr(os.WriteFile(b.dir+"/a", nil, 0o644))
		for fd := 5; fd < 13; fd++ { // where the monitor's directories were
			vol := b.dir + "/vol"
			h.noErr(os.MkdirAll(vol+"/x", 0o755))
			h.noErr(os.Symlink(fmt.Sprintf("/proc/self/fd/%d/../../../..", fd), vol+"/y"))
			stop := make(chan struct{})
			var flipping sync.WaitGroup
			flipping.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_ = unix.Renameat2(unix.AT_FDCWD, vol+"/x", unix.AT_FDCWD, vol+"/y", unix.RENAME_EXCHANGE)
					}
				}
			})
			h.cmd("create", "--bundle", b.dir, b.id) // it may fail, or make a container
			h.must("delete", "--force", b.id)
			close(stop)
			flipping.Wait()
			h.noErr(os.RemoveAll(vol))
		}
		h.noErr(os.MkdirAll(b.dir+"/vol/x", 0o755))
		h.must("run", "--bundle", b.dir, b.id) // with nobody who exchanges anything it is a container like any other
		if found := escaped(h, "bxescaped"); len(found) > 0 {
			for _, path := range found {
				_ = os.Remove(path) // the machine's, not the suite's to leave them
			}
			h.Errorf("made on the host: %v", found)
		}
	})
}

// What an image has for a file that the host reads does not keep the host waiting, nor fill its memory.
func TestHostileFilesOfAnImage(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		for name, make := range map[string]string{
			"fifo":   "mkfifo resolv.conf localtime",
			"sparse": "truncate -s 10G resolv.conf; truncate -s 10G localtime",
			"zero":   "ln -s /proc/self/fd/5/zero resolv.conf; ln -s /dev/zero localtime",
			"socket": "ln -s /proc/1/fd/0 resolv.conf; ln -s / localtime",
			"links":  "ln -s resolv.conf resolv.conf; ln -s localtime localtime",
		} {
			b := h.bundle("image-"+name, "echo up; sleep 1000", nil)
			h.shOut("cd " + b.rootfs("etc") + "; rm -f resolv.conf localtime; " + make)
			began := time.Now()
			c := h.create(b)
			c.start()
			h.expect(c.out, "up\n")
			if took := time.Since(began); took > 30*time.Second {
				h.Errorf("%s: create and start took %s", name, took)
			}
			h.want(name+": monitor's memory", h.peakOver(c.pid, 64), "")
			h.must("delete", "--force", b.id)
			c.out.wait()
		}
	})
}

// peakOver says how much memory a process has had at most, in MiB, if that is more than most.
func (h *hand) peakOver(pid, most int) string {
	h.Helper()
	peak := h.peakMiB(pid)
	if peak <= most {
		return ""
	}
	return itoa(peak) + " MiB"
}

// peakMiB is the most memory that a process has had (VmHWM).
func (h *hand) peakMiB(pid int) int {
	h.Helper()
	text, err := os.ReadFile("/proc/" + itoa(pid) + "/status")
	h.noErr(err)
	for line := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kib), "kB")))
			h.noErr(err)
			return n >> 10
		}
	}
	h.Fatalf("no VmHWM of %d", pid)
	return 0
}

// Callers enter the namespaces of the processes whose pids they have, and walk the container's paths there. Nothing of the
// host's can be reached from any of them.
func TestNothingOfTheHostToEnter(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("enter", "sleep 1000", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: filepath.Join(workDir, "bundle-enter", "vol"), Options: []string{"rbind"}})
		})
		h.noErr(os.Mkdir(b.dir+"/vol", 0o755))
		c := h.create(b)
		c.start()
		pidFile := filepath.Join(b.dir, "exec-pid")
		x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pid-file", pidFile, b.id, "sleep", "1000"), Env: h.vars, Dir: "/"}, [3]*os.File{})
		h.want("exec --detach", x.wait(0).String(), "exit code 0")

		root, err := os.Stat(b.rootfs(""))
		h.noErr(err)
		boxlite, err := os.Stat(h.rt.bin)
		h.noErr(err)
		for name, pid := range map[string]int{"monitor": c.pid, "exec's process": h.readPid(pidFile)} {
			proc := "/proc/" + itoa(pid)
			for _, link := range []string{"root", "cwd"} {
				st, err := os.Stat(proc + "/" + link)
				h.noErr(err)
				if !os.SameFile(st, root) {
					h.Errorf("%s of the %s is not the rootfs", link, name)
				}
			}
			fds, err := filepath.Glob(proc + "/fd/*")
			h.noErr(err)
			for _, fd := range fds {
				if st, err := os.Stat(fd); err == nil && st.IsDir() {
					to, _ := os.Readlink(fd)
					h.Errorf("the %s has the directory %s open as %s", name, to, fd)
				}
			}
			maps, err := filepath.Glob(proc + "/map_files/*")
			h.noErr(err)
			for _, m := range maps {
				if st, err := os.Stat(m); err == nil && st.Mode().IsRegular() && !os.SameFile(st, boxlite) {
					to, _ := os.Readlink(m)
					h.Errorf("the %s has %s mapped", name, to)
				}
			}
		}
		tasks, err := filepath.Glob("/proc/" + itoa(c.pid) + "/task/*/root")
		h.noErr(err)
		for _, task := range tasks {
			if entries, err := os.ReadDir(task + "/"); err == nil && hasName(entries, "boot") && hasName(entries, "usr") {
				h.Errorf("%s of the monitor is the host's", task)
			}
		}

		// A link of the container's leads to whatever the processes there have, if it can be followed.
		out := h.shOut(fmt.Sprintf(`nsenter -t %d -m -p /bin/sh -c '
for l in /proc/[0-9]*/root /proc/[0-9]*/cwd /proc/[0-9]*/exe /proc/[0-9]*/fd/* /proc/[0-9]*/task/*/root /proc/self/root; do [ -e "$l" ] && echo "$l"; done; :'`, c.pid))
		h.want("links that can be followed", out, "")
		h.must("delete", "--force", b.id)
	})
}

func hasName(entries []fs.DirEntry, name string) bool {
	for _, entry := range entries {
		if entry.Name() == name {
			return true
		}
	}
	return false
}

// A start that cannot write down that the container runs ends it.
func TestStartOnAFullDisk(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		h.root = "/run/byhand-full"
		h.noErr(os.Mkdir(h.root, 0o755))
		h.noErr(unix.Mount("tmpfs", h.root, "tmpfs", 0, "size=1m"))
		h.Cleanup(func() {
			h.noErr(unix.Unmount("/run/byhand-full", unix.MNT_DETACH))
			h.noErr(os.Remove("/run/byhand-full"))
		})
		b := h.bundle("full", "echo ran; sleep 1000", nil)
		c := h.create(b)
		_ = exec.Command("dd", "if=/dev/zero", "of="+h.root+"/fill").Run() // until it is full
		h.wantCode(h.cmd("start", b.id), 1)
		c.end()
		h.wantStatus(b.id, specs.StateStopped)
		h.wantNoProcess(b)
		h.noErr(os.Remove(h.root + "/fill"))
		h.must("delete", b.id)
	})
}

// What start has begun ends with a start that is killed before it has written that down, and stays where it has.
func TestStartKilled(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		for _, after := range []time.Duration{5, 20, 40, 80} {
			b := h.bundle(fmt.Sprintf("start-killed-%d", after), "sleep 1000", nil)
			c := h.create(b)
			cmd := h.cmdline("start", b.id)
			h.noErr(cmd.Start())
			time.Sleep(after * time.Millisecond) // a moment of its work, whichever it is
			_ = cmd.Process.Kill()               // it may have ended
			_ = cmd.Wait()
			if cmd.ProcessState.Success() {
				h.wantStatus(b.id, specs.StateRunning)
			}
			// Whatever it is: the state says so, and delete knows what to do.
			if h.state(b.id).Status == specs.StateCreated && h.cmd("start", b.id).code != 0 {
				h.waitStatus(b.id, specs.StateStopped)
			}
			h.must("delete", "--force", b.id)
			c.end()
			h.wantNoProcess(b)
		}
	})
}

// A delete that waited for a start looks at what has become of the container.
func TestDeleteBehindStart(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("behind", "echo up; sleep 1000", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "2"}}}}
		})
		c := h.create(b)
		start := h.cmdline("start", b.id)
		h.noErr(start.Start())
		h.noErr(waitFor("start holds the lock", func() bool { return h.lockHeld(b) }))
		h.wantFail("cannot delete container "+b.id+" that is not stopped: running", "delete", b.id)
		h.noErr(start.Wait())
		h.expect(c.out, "up\n")
		h.wantStatus(b.id, specs.StateRunning)
		h.must("delete", "--force", b.id)
	})
}

// lockHeld says that a command has the container's lock.
func (h *hand) lockHeld(b bundle) bool {
	f, err := os.OpenFile(filepath.Join(h.root, b.id, "lock"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// create and its monitor are killed when only the record of the birth exists: delete --force gives the network namespace
// back and runs the poststop hooks.
func TestCreateAndMonitorKilled(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.inMadeNetwork("born-dead", "true")
		before := h.madeNetwork()
		spec := defaultSpec(b.id, "sh", "-c", "true")
		joinNetwork(spec)
		log := b.rootfs("log")
		spec.Hooks = &specs.Hooks{Poststop: logHook("poststop", log)}
		h.writeSpec(b, spec)
		wired := false
		for range 5 { // no event tells that the filters are there, so the moment can be missed
			h.noErr(os.RemoveAll(log))
			cmd := h.cmdline("create", "--bundle", b.dir, b.id)
			h.noErr(cmd.Start())
			err := waitFor("filters of the VM", func() bool { return h.madeNetwork() != before })
			h.noErr(err)
			h.noErr(cmd.Process.Signal(syscall.SIGSTOP)) // it may not undo anything
			_, err = os.Stat(filepath.Join(h.root, b.id, "birth.json"))
			wired = err == nil
			h.killByName(b, "boxlite")
			h.killByName(b, "sh") // the monitor's name is the container's command
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			h.must("delete", "--force", b.id)
			if wired {
				break
			}
		}
		if !wired {
			h.Fatal("create had always written its state before it was killed")
		}
		h.wantNoProcess(b)
		h.want("the namespace", h.madeNetwork(), before)
		text, _ := os.ReadFile(log)
		h.wantPart("hooks that ran", string(text), "poststop")
	})
}

// The process of an exec whose command has gone before it was told is ended.
func TestExecKilledEarly(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("exec-killed", "sleep 1000", nil)
		c := h.create(b)
		c.start()
		for i := range 12 {
			cmd := h.cmdline("exec", b.id, "sleep", "777")
			h.noErr(cmd.Start())
			time.Sleep(time.Duration(i*8) * time.Millisecond) // a moment of its work, whichever it is
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		err := waitFor("no process of an exec is left", func() bool {
			return strings.Count(h.must("exec", b.id, "ps"), "sleep 777") == 0
		})
		h.noErr(err)
		h.must("delete", "--force", b.id)
	})
}
