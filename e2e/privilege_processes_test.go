package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// virtiofsds are those of the two that the machine has.
func virtiofsds() (paths []string) {
	for _, path := range []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"} {
		if _, err := os.Stat(path); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

func withMknod(s *specs.Spec) {
	caps := s.Process.Capabilities
	for _, set := range []*[]string{&caps.Bounding, &caps.Permitted, &caps.Effective} {
		*set = append(slices.Clip(*set), "CAP_MKNOD")
	}
}

// What the processes of a container may do on the host, for root, with each virtiofsd.
func TestProcessPowers(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		for i, path := range virtiofsds() {
			h.flags = []string{"--virtiofsd", path}
			for name, edit := range map[string]func(*specs.Spec){"plain": nil, "mknod": withMknod} {
				b := h.bundle(fmt.Sprintf("powers-%s-%d", name, i), "mknod /node c 1 3 && echo made; mknod /pipe p; ls /pipe; exec sleep 1000", edit)
				c := h.create(b)
				h.wantPowers(c.pid, ownID(c.pid), row(rowMonitor, true))
				h.wantPartsPowers(c.pid, ownID(c.pid), row(rowQEMU, false), row(rowServes, edit != nil))
				c.start()
				h.expect(c.out, "/pipe\n")
				h.wantPartsPowers(c.pid, ownID(c.pid), row(rowQEMU, false), row(rowServes, edit != nil))
				h.must("delete", "--force", b.id)
				h.want("output with "+name, c.out.wait(), map[string]string{"plain": "/pipe\n", "mknod": "made\n/pipe\n"}[name])
			}
		}
	})
}

// With the host's network a monitor has nothing to do with networks.
func TestProcessPowersHostNetwork(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		for name, low := range map[string]bool{"low-ports": true, "no-low-ports": false} {
			b := h.bundle("powers-host-network-"+name, "exec sleep 1000", func(s *specs.Spec) {
				s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace })
				if !low {
					s.Process.Capabilities = &specs.LinuxCapabilities{}
				}
			})
			c := h.create(b)
			want := row(rowMonitor, false)
			if low {
				want.capabilities += " NET_BIND_SERVICE"
			}
			h.wantPowers(c.pid, ownID(c.pid), want)
			h.must("delete", "--force", b.id)
			c.out.wait()
		}
	})
}

// An exec that nobody waits for has a process of boxlite's that stands for it.
func TestProcessPowersDetachedExec(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("powers-exec", "exec sleep 1000", nil)
		c := h.create(b)
		c.start()
		pidFile := filepath.Join(h.diskDir(), "pid")
		x := startReaper(h.T, reaperJob{Args: h.argv("exec", "--detach", "--pid-file", pidFile, b.id, "sleep", "1000"), Env: h.vars, Dir: "/"}, [3]*os.File{})
		h.want("exec", x.wait(0).String(), "exit code 0")
		h.wantPowers(h.readPid(pidFile), ownID(c.pid), row(rowExec, false))
		h.must("delete", "--force", b.id)
		c.out.wait()
	})
}

// A bind of a socket of the host's has a process of its own that connects to it.
func TestProcessPowersHostSocket(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		server := h.hostServer(filepath.Join(h.diskDir(), "server.sock"), 0o600)
		b := h.bundle("powers-socket", "probe dial unix /server.sock hello; exec sleep 1000", bindSocket(server.path))
		c := h.create(b)
		h.wantPowers(c.pid, ownID(c.pid), row(rowMonitor, true))
		c.start()
		h.expect(c.out, "hello\n")
		h.wantPowers(h.childrenOf(c.pid)["boxlite"], ownID(c.pid), row(rowDialer, false))
		h.must("delete", "--force", b.id)
		c.out.wait()
	})
}

// A pod's member has one too, and no other process. The monitor of the pod's sandbox has the powers of any monitor, and the
// member's root open.
func TestProcessPowersPod(t *testing.T) {
	eachVM(t, func(e *env) {
		p := e.byHand().pod(nil)
		c := p.create(p.member("powers", "exec sleep 1000", ipcAndUTS, nil))
		c.start()
		p.wantPowers(c.pid, ownID(c.pid), row(rowExec, false))
		monitor := row(rowMonitor, true)
		monitor.directories = "others: /"
		p.wantPowers(p.sandbox.pid, ownID(p.sandbox.pid), monitor)
		root, err := os.Stat("/proc/" + itoa(c.pid) + "/root")
		p.noErr(err)
		fds, err := filepath.Glob("/proc/" + itoa(p.sandbox.pid) + "/fd/*")
		p.noErr(err)
		for _, fd := range fds {
			if st, err := os.Stat(fd); err == nil && st.IsDir() && !os.SameFile(st, root) {
				p.Errorf("the monitor has a directory open as %s that is not the member's root", fd)
			}
		}
		p.want("children of the stand-in", p.shOut(fmt.Sprintf("cat /proc/%d/task/*/children", c.pid)), "")
		p.must("delete", "--force", c.id)
	})
}

// In a user namespace in which every id is itself.
func TestProcessPowersInUserNamespace(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("powers-userns", "exec sleep 1000", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		})
		h.noErr(sh(fmt.Sprintf("chmod o+x %s %s && chown -R 100000:100000 %s", workDir, b.dir, b.rootfs(""))))
		c := h.create(b)
		h.wantPowers(c.pid, ownID(c.pid), row(rowMonitor, true))
		h.wantPartsPowers(c.pid, ownID(c.pid), row(rowQEMU, false), row(rowServes, false))
		h.must("delete", "--force", b.id)
		c.out.wait()
	})
}

// A VM that stands by, and then is a container's.
func TestProcessPowersStandby(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		templates := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(templates)
		service := h.standby(1)
		keeper := h.oneKeeper(templates)
		qemu := h.childrenOf(keeper)["QEMU"]
		b := h.bundle("powers-standby", "echo up; exec sleep 1000", withMknod)
		h.wantPowers(qemu, ownID(keeper), row(rowQEMU, false))
		c := h.create(b)
		c.start()
		h.expect(c.out, "up\n")
		if !h.isOf(b, keeper) {
			h.Errorf("keeper %d is not in the container's cgroup: %v", keeper, h.processesOf(b))
		}
		h.wantPowers(keeper, ownID(keeper), row(rowKeeper, false))
		h.wantPowers(qemu, ownID(keeper), row(rowQEMU, false))
		h.wantPowers(c.pid, ownID(c.pid), row(rowMonitor, true))
		h.wantPartsPowers(c.pid, ownID(c.pid), row(rowQEMU, false), row(rowServes, true))
		h.must("delete", "--force", b.id)
		h.endStandby(service)
		c.out.wait()
	})
}

// An ordinary user by hand is alone in the user namespace, so QEMU is the user, too.
func TestProcessPowersRootless(t *testing.T) {
	for _, rt := range runtimes {
		if !rt.isVM() {
			continue
		}
		runPodman(t, rt, true, func(e *podmanEnv) {
			u := &rootless{podmanEnv: e, dir: filepath.Join(e.hostDir(), "bundle")}
			u.bundle("echo up; exec sleep 1000", func(*specs.Spec) {})
			id := tag + "-powers"
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			run := startSession(u.T, u.cmdline(ctx, "run", id), cancel)
			run.expect("up\n")
			monitor := u.pidOf(id)
			qemu := row(rowQEMU, false)
			qemu.user = "root"
			own := row(rowMonitor, false)
			own.capabilities += " NET_BIND_SERVICE" // the network is the host's
			u.wantPowers(monitor, ids{root: userID, own: -1}, own)
			u.wantPartsPowers(monitor, ids{root: userID, own: -1}, qemu, row(rowServes, false))
			u.must("kill", id, "KILL")
			u.want("exit code", itoa(run.end()), "137")
		})
	}
}

// pidOf is the pid of a running container in its state.
func (u *rootless) pidOf(id string) int {
	u.Helper()
	_, text, _ := strings.Cut(u.must("state", id), `"pid": `)
	text, _, _ = strings.Cut(text, ",")
	pid, err := strconv.Atoi(text)
	u.noErr(err)
	return pid
}

// Podman's user has a range of ids, of which QEMU gets the last one.
func TestProcessPowersPodman(t *testing.T) {
	for _, rt := range runtimes {
		if !rt.isVM() {
			continue
		}
		for _, user := range []bool{false, true} {
			runPodman(t, rt, user, func(e *podmanEnv) {
				id := e.startReady("up", "--cap-drop", "MKNOD", "busybox", "sh", "-c", "echo up; exec sleep 1000")
				monitor, err := strconv.Atoi(e.inspect(id, ".State.Pid"))
				e.noErr(err)
				who := ownID(monitor)
				if user {
					who = ids{root: userID, own: 200000 + 65536 - 1}
				}
				e.wantPowers(monitor, who, row(rowMonitor, true))
				e.wantPartsPowers(monitor, who, row(rowQEMU, false), row(rowServes, false))
			})
		}
	}
}

// Files that are root's alone are no obstacle: QEMU then stays root, without its capabilities, and the log says why.
func TestProcessFilesOfRoot(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := h.diskDir()
		parts := filepath.Dir(h.rt.bin)
		h.noErr(sh(fmt.Sprintf(`cd %s && mkdir parts && cp %s/vmlinux-* %[2]s/initramfs.cpio parts && chmod 600 parts/vmlinux-*
			mkdir -m 700 closed && mkdir closed/open
			for dir in closed closed/open; do
				printf '#!/usr/bin/sh\nexec /usr/bin/qemu-system-x86_64 "$@"\n' >$dir/qemu && chmod 755 $dir/qemu
			done`, dir, parts)))
		for name, c := range map[string]struct{ flag, path, user, file string }{
			"kernel":    {"--parts", "parts", "root", "parts/vmlinux-lean"},
			"directory": {"--qemu", "closed/qemu", "root", "closed"},
			"above":     {"--qemu", "closed/open/qemu", "its own", ""},
		} {
			h.flags = []string{"--debug", "--log", filepath.Join(dir, name+".log"), c.flag, filepath.Join(dir, c.path)}
			b := h.bundle("of-root-"+name, "exec sleep 1000", nil)
			made := h.create(b)
			qemu := row(rowQEMU, false)
			qemu.user = c.user
			h.wantPartsPowers(made.pid, ownID(made.pid), qemu, row(rowServes, false))
			log, err := os.ReadFile(filepath.Join(dir, name+".log"))
			h.noErr(err)
			_, line, said := strings.Cut(string(log), "QEMU gets no user of its own")
			line, _, _ = strings.Cut(line, "\n")
			if said != (c.file != "") || said && !strings.HasSuffix(line, fmt.Sprintf("file=%q", filepath.Join(dir, c.file))) {
				h.Errorf("%s: the log says %q, want it to name %q", name, line, c.file)
			}
			h.must("delete", "--force", b.id)
			made.out.wait()
		}
	})
}

// The monitor's children end with it also where no pid namespace of its own sees to that, though QEMU is another user's.
func TestProcessesDieWithMonitor(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		b := h.bundle("no-pidns", "exec sleep 1000", func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
		})
		c := h.create(b)
		c.start()
		h.wantPowers(h.childrenOf(c.pid)["QEMU"], ownID(c.pid), row(rowQEMU, false))
		h.noErr(syscall.Kill(c.pid, syscall.SIGKILL))
		h.want("end", c.end().String(), "killed by killed")
		h.wantNoProcess(b)
		h.must("delete", b.id)
		c.out.wait()
	})
}

// Attributes that are a kernel's or its root's business are the guest's own, though virtiofsd is not allowed to set such.
func TestFileAttributes(t *testing.T) {
	eachVM(t, func(e *env) {
		dir := e.diskDir()
		file := filepath.Join(dir, "file")
		e.noErr(os.WriteFile(file, nil, 0o644))
		for _, name := range []string{"user.host", "trusted.host", "security.host"} {
			e.noErr(unix.Setxattr(file, name, []byte("the host's"), 0))
		}
		got := e.runOK("--cap-add", "SYS_ADMIN", "-v", dir+":/v", "busybox", "probe", "attrs", "/v/file", "user.a", "trusted.a", "security.a", "security.capability")
		e.want("attributes in the container", got, "security.a security.capability trusted.a user.a user.host")
		for name, value := range map[string]string{
			"user.a": "set inside", "user.virtiofs.trusted.a": "set inside", "user.virtiofs.security.a": "set inside",
			"user.host": "the host's", "trusted.host": "the host's", "security.host": "the host's",
		} {
			buf := make([]byte, 64)
			n, err := unix.Getxattr(file, name, buf)
			e.noErr(err)
			e.want(name+" on the host", string(buf[:n]), value)
		}
		_, err := unix.Getxattr(file, "security.capability", nil)
		e.noErr(err)
	})
}
