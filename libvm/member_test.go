package libvm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/plan"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
)

// memberSpec is spec for a member of a sandbox's pod.
func (h *host) memberSpec(sandbox *Container, id string, args ...string) *specs.Spec {
	spec := h.spec(args...)
	spec.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": sandbox.ID}
	spec.Linux.CgroupsPath += "-" + id
	for i := range spec.Linux.Namespaces {
		if ns := &spec.Linux.Namespaces[i]; ns.Type == specs.NetworkNamespace {
			ns.Path = fmt.Sprintf("/proc/%d/ns/net", sandbox.Pid)
		}
	}
	return spec
}

// vmProcesses are those of a container's VM, which are the stand-in's children.
func vmProcesses(t *testing.T, c *Container) int {
	t.Helper()
	children, err := childrenOf(c.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return len(children)
}

// members are the names of the members' directories in the share, which is the root of one of the VM's processes.
func (h *host) members(sandbox *Container) string {
	h.t.Helper()
	children, err := childrenOf(sandbox.Pid)
	if err != nil {
		h.t.Fatal(err)
	}
	var names []string
	for _, pid := range children {
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/root/members", pid)) // QEMU's root is empty
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

// Two members in the VM of a sandbox: each lives and ends by itself.
func TestMembers(t *testing.T) {
	h := newHost(t)
	sandbox := h.create("pod", h.spec("wait"), newStreams(t))
	if err := sandbox.Start(); err != nil {
		t.Fatal(err)
	}
	io1, io2 := newStreams(t), newStreams(t)
	one := h.create("one", h.memberSpec(sandbox, "one", "cat"), io1)
	two := h.create("two", h.memberSpec(sandbox, "two", "wait"), io2)
	if n := vmProcesses(t, one); n > 0 {
		t.Errorf("a member's stand-in has %d children", n)
	}
	if got := h.members(sandbox); got != "one two" {
		t.Errorf("the share has the members %q, of %+v and %+v", got, one.Sandbox, two.Sandbox)
	}
	if _, err := h.Create("one", CreateOptions{Bundle: h.bundle, Spec: h.memberSpec(sandbox, "one", "cat")}); !errors.Is(err, ErrExist) {
		t.Errorf("a second one of the name: %v, want %v", err, ErrExist)
	}
	for _, c := range []*Container{one, two} {
		wantStatus(t, c, specs.StateCreated)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); !errors.Is(err, ErrRunning) {
			t.Errorf("a second start: %v, want %v", err, ErrRunning)
		}
	}
	if _, err := io1.in.WriteString("to and fro\n"); err != nil {
		t.Fatal(err)
	}
	wantLine(t, io1.out, "to and fro")
	if err := two.Signal(int(unix.SIGUSR1), false); err != nil {
		t.Fatal(err)
	}
	wantLine(t, io2.out, "signal 10")
	if err := unix.Kill(two.Pid, unix.SIGUSR2); err != nil { // as a caller does that knows the pid
		t.Fatal(err)
	}
	wantLine(t, io2.out, "signal 12")

	// Each can be paused alone, the sandbox too.
	for _, c := range []*Container{two, sandbox} {
		if err := c.Pause(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(ExecOptions{Process: &specs.Process{Args: []string{"exit", "0"}}, Stdio: newStreams(t).Stdio}); !errors.Is(err, ErrPaused) {
			t.Errorf("exec in a pause of %s: %v, want %v", c.ID, err, ErrPaused)
		}
		if end, err := one.Exec(ExecOptions{Process: &specs.Process{Args: []string{"exit", "3"}}, Stdio: newStreams(t).Stdio}); err != nil || end.Code != 3 {
			t.Errorf("exec in another in a pause of %s: %+v, %v", c.ID, end, err)
		}
		if err := c.Resume(); err != nil {
			t.Fatal(err)
		}
		if end, err := c.Exec(ExecOptions{Process: &specs.Process{Args: []string{"exit", "4"}}, Stdio: newStreams(t).Stdio}); err != nil || end.Code != 4 {
			t.Errorf("exec in %s after the pause: %+v, %v", c.ID, end, err)
		}
	}
	for _, c := range []*Container{sandbox, one, two} {
		if _, err := c.Stats(); err != nil {
			t.Errorf("stats of %s: %v", c.ID, err)
		}
		limit := int64(300 << 20)
		if err := c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
			t.Errorf("update of %s: %v", c.ID, err)
		}
	}

	// One ends by itself, and goes. The name is free again.
	if err := io1.in.Close(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(io1.out); err != nil || len(rest) > 0 {
		t.Errorf("left in stdout: %q, %v", rest, err)
	}
	if status, err := one.Wait(); err != nil || status != 0 {
		t.Errorf("Wait = %d, %v", status, err)
	}
	wantStatus(t, one, specs.StateStopped)
	if err := one.Signal(int(unix.SIGTERM), false); !errors.Is(err, ErrNotRunning) {
		t.Errorf("signal to one that has stopped: %v, want %v", err, ErrNotRunning)
	}
	if err := one.Delete(false); err != nil {
		t.Fatal(err)
	}
	if got := h.members(sandbox); got != "two" {
		t.Errorf("the share has the members %q", got)
	}
	again := h.create("one", h.memberSpec(sandbox, "one", "exit", "7"), newStreams(t))
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	if status, err := again.Wait(); err != nil || status != 7 {
		t.Errorf("Wait = %d, %v", status, err)
	}
	// The stand-in of another is killed. That takes only the member.
	if err := unix.Kill(two.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(io2.out); err != nil || len(rest) > 0 {
		t.Errorf("the member of a stand-in that was killed goes on: %q, %v", rest, err)
	}
	if err := two.Delete(true); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, sandbox, specs.StateRunning)
	if err := sandbox.Pause(); err != nil { // some have ended, and one has not been deleted
		t.Fatal(err)
	}
	if err := errors.Join(sandbox.Resume(), again.Delete(false)); err != nil {
		t.Fatal(err)
	}
	if err := sandbox.Delete(true); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(h.Root); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// The end of the sandbox is that of its members.
func TestSandboxEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(h *host, sandbox *Container) error
		want int
	}{
		"by itself":           {func(h *host, c *Container) error { return c.Signal(int(unix.SIGTERM), false) }, 255},
		"by SIGKILL":          {func(h *host, c *Container) error { return c.Signal(int(unix.SIGKILL), false) }, 137},
		"its monitor, killed": {func(h *host, c *Container) error { return unix.Kill(c.Pid, unix.SIGKILL) }, 137},
		"deleted":             {func(h *host, c *Container) error { return c.Delete(true) }, 137},
		"its VM": {func(h *host, c *Container) error {
			children, err := childrenOf(c.Pid)
			if err != nil || len(children) != 2 {
				return fmt.Errorf("children %v, %v", children, err)
			}
			return unix.Kill(children[0], unix.SIGKILL)
		}, 255},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			sandbox := h.create("pod", h.spec("wait"), newStreams(t))
			io := newStreams(t)
			started := h.create("started", h.memberSpec(sandbox, "started", "wait"), io)
			created := h.create("created", h.memberSpec(sandbox, "created", "wait"), newStreams(t))
			if err := errors.Join(sandbox.Start(), started.Start()); err != nil {
				t.Fatal(err)
			}
			if err := c.end(h, sandbox); err != nil {
				t.Fatal(err)
			}
			for _, member := range []*Container{started, created} {
				if status, err := member.Wait(); err != nil || status != c.want {
					t.Errorf("Wait of %s = %d, %v, want %d", member.ID, status, err, c.want)
				}
				wantStatus(t, member, specs.StateStopped)
				if _, err := member.Exec(ExecOptions{Process: &specs.Process{Args: []string{"exit", "0"}}, Stdio: newStreams(t).Stdio}); !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrVMLost) {
					t.Errorf("exec = %v, want %v or %v", err, ErrNotRunning, ErrVMLost)
				}
				if err := member.Delete(false); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// What cannot be a member says why, and leaves nothing.
func TestMemberFails(t *testing.T) {
	h := newHost(t)
	sandbox := h.create("pod", h.spec("wait"), newStreams(t))
	ended := h.create("ended", h.memberSpec(sandbox, "ended", "wait"), newStreams(t))
	if err := ended.Signal(int(unix.SIGKILL), false); err != nil {
		t.Fatal(err)
	}
	if _, err := ended.Wait(); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(h.Root, "runcs")
	if err := os.Mkdir(foreign, 0o711); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		edit func(*specs.Spec)
		want string
	}{
		"a sandbox that is not there":   {func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-id"] = "nobody" }, "the pod's sandbox, nobody, is not a container of boxlite's below " + h.Root},
		"a sandbox of another runtime":  {func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-id"] = "runcs" }, "the pod's sandbox, runcs, is not a container of boxlite's"},
		"an id that is none":            {func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-id"] = "../pod" }, "invalid container id"},
		"a sandbox that has stopped":    {func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-id"] = "ended" }, "the pod's sandbox, ended, has stopped"},
		"a program that is not there":   {func(s *specs.Spec) { s.Process.Args = []string{"nonesuch"} }, "nonesuch"},
		"a kernel that the pod has not": {func(s *specs.Spec) { s.Annotations[plan.AnnotationKernel] = "net" }, "give the pod's sandbox, pod, the annotation boxlite.kernel=net"},
		"a disk":                        {func(s *specs.Spec) { s.Annotations[plan.AnnotationScratch] = "/d=16M" }, "annotation boxlite.scratch"},
		"a mount that is not there": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/d", Source: "/nonesuch", Options: []string{"bind"}})
		}, "/nonesuch"},
		"a hook that fails": {func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/false"}}} }, "createContainer hook #0"},
		"no process":        {func(s *specs.Spec) { s.Process = nil }, "no process"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := h.memberSpec(sandbox, "bad", "wait")
			c.edit(spec)
			_, err := h.Create("bad", CreateOptions{Bundle: h.bundle, Spec: spec})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Create = %v, want %q", err, c.want)
			}
			if _, err := os.Stat(filepath.Join(h.Root, "bad")); err == nil {
				t.Error("its state dir is there")
			}
			if got := h.members(sandbox); got != "ended" {
				t.Errorf("the share has the members %q", got)
			}
		})
	}
	if err := errors.Join(sandbox.Pause(), sandbox.Resume()); err != nil {
		t.Error(err)
	}
	if err := ended.Delete(false); err != nil {
		t.Fatal(err)
	}
	if err := sandbox.Pause(); err != nil { // now the VM
		t.Fatal(err)
	}
	if _, err := h.Create("bad", CreateOptions{Bundle: h.bundle, Spec: h.memberSpec(sandbox, "bad", "wait")}); err == nil || !strings.Contains(err.Error(), "the pod's sandbox is paused") {
		t.Errorf("Create in a paused VM = %v", err)
	}
	if err := sandbox.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
}

// A container with another network than the sandbox it names is no member: it has a VM of its own.
func TestOtherNetworkIsNoMember(t *testing.T) {
	h := newHost(t)
	sandbox := h.create("pod", h.spec("wait"), newStreams(t))
	spec := h.memberSpec(sandbox, "other", "wait")
	spec.Linux.Namespaces = h.spec().Linux.Namespaces
	other := h.create("other", spec, newStreams(t))
	if other.Sandbox != nil || vmProcesses(t, other) != 2 {
		t.Errorf("sandbox %+v, %d processes of a VM", other.Sandbox, vmProcesses(t, other))
	}
}

// Whose namespace a path is, is found by what it leads to.
func TestFindJoins(t *testing.T) {
	h := newHost(t)
	sandbox := h.create("pod", h.spec("wait"), newStreams(t))
	one := h.create("one", h.memberSpec(sandbox, "one", "wait"), newStreams(t))
	spec := h.memberSpec(sandbox, "two", "wait")
	for i := range spec.Linux.Namespaces {
		switch ns := &spec.Linux.Namespaces[i]; ns.Type {
		case specs.IPCNamespace:
			ns.Path = fmt.Sprintf("/proc/%d/ns/ipc", sandbox.Pid)
		case specs.PIDNamespace:
			ns.Path = fmt.Sprintf("/proc/%d/ns/pid", one.Pid)
		case specs.UTSNamespace:
			ns.Path = "/proc/self/ns/uts" // of nobody in the pod
		}
	}
	p, err := h.findPod("two", spec)
	if err != nil {
		t.Fatal(err)
	}
	if whose, ok := p.joins[specs.IPCNamespace]; !ok || whose != "" {
		t.Errorf("ipc is %q's, %v, want the sandbox's", whose, ok)
	}
	if whose := p.joins[specs.PIDNamespace]; whose != "one" {
		t.Errorf("pid is %q's, want one's", whose)
	}
	if len(p.joins) != 2 {
		t.Errorf("joins = %v", p.joins)
	}
}

// A guest that has put something of its own where a member's files shall be has the create fail, and no more.
func TestHostileShare(t *testing.T) {
	h := newHost(t)
	sandbox := h.create("pod", h.spec("wait"), newStreams(t))
	share, err := (&Container{State: State{ID: "none", Sandbox: &Sandbox{sandbox.ID, sandbox.Pid, sandbox.PidStart}}, rt: h.Runtime}).runningShare()
	if err != nil {
		t.Fatal(err)
	}
	defer share.Server.Close()
	tree, err := rootfs.CopyTree("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := share.Attach("rootfs/member", tree); err == nil { // not of the share's own file system
		t.Error("mounted in the rootfs of the sandbox")
	}
	if _, err := os.Stat(filepath.Join(h.bundle, "rootfs/member")); err == nil {
		t.Error("a directory was made in the rootfs of the sandbox")
	}
	share.Identity.Inode++
	if err := share.Attach("members/a", tree); err == nil || !strings.Contains(err.Error(), "is not the share") {
		t.Errorf("another root: %v", err)
	}
}
