package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// memberSpec is dockerSpec for a member, whose rootfs it makes.
func (v *vm) memberSpec(name string, process *specs.Process) *specs.Spec {
	v.t.Helper()
	rootfs := guestproto.MemberName(name) + "/rootfs"
	makeRootfs(v.t, filepath.Join(v.dir, "share", rootfs))
	spec := dockerSpec(process)
	spec.Root.Path = filepath.Join(guestproto.ShareDir, rootfs)
	return spec
}

// shareShm has a member's /dev/shm be that of the container whose ipc namespace it joins.
func shareShm(spec *specs.Spec) {
	for i := range spec.Mounts {
		if m := &spec.Mounts[i]; m.Destination == "/dev/shm" {
			m.Type, m.Source, m.Options = "bind", guestproto.JoinedShm, []string{"bind", "nosuid", "noexec", "nodev"}
		}
	}
}

// startMember creates and starts a member that only waits.
func (v *vm) startMember(spec *specs.Spec, joins map[specs.LinuxNamespaceType]string) {
	v.t.Helper()
	v.ok(guestproto.OpCreate, guestproto.CreateRequest{ID: v.container, Spec: spec, Joins: joins}, nil)
	v.ok(guestproto.OpStart, guestproto.StartRequest{}, nil)
}

// Members of a pod live beside the first container and beside each other: what they have in common is what was asked
// for and the network, and each comes and goes alone.
func TestMembers(t *testing.T) {
	v := bootVM(t)
	early := v.in("early")
	wantError(t, early.call(guestproto.OpCreate, guestproto.CreateRequest{ID: "early", Spec: dockerSpec(shell("true"))}, nil),
		guestproto.CodeBadRequest, "the VM has no container yet")
	v.start(dockerSpec(shell("touch /tmp/of-the-first; sleep 1000")))

	near, far := v.in("near"), v.in("far")
	spec := v.memberSpec("near", shell("hostname near; sleep 1001"))
	shareShm(spec)
	limit, pids := int64(32<<20), int64(50)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, Pids: &specs.LinuxPids{Limit: &pids}}
	spec.Hostname = ""
	sysAdmin := append([]string{"CAP_SYS_ADMIN"}, dockerCapabilities...)
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: sysAdmin, Effective: sysAdmin, Permitted: sysAdmin}
	near.startMember(spec, map[specs.LinuxNamespaceType]string{specs.IPCNamespace: guestproto.First, specs.UTSNamespace: guestproto.First, specs.PIDNamespace: guestproto.First})
	far.startMember(v.memberSpec("far", shell("nc -l -p 80 -e echo answer & sleep 1002")), nil)
	wantError(t, far.call(guestproto.OpCreate, guestproto.CreateRequest{ID: "far", Spec: dockerSpec(shell("true"))}, nil),
		guestproto.CodeBadRequest, "the VM has a container far already")

	t.Run("first", func(t *testing.T) {
		look(t, v, []probe{
			{"hostname", "near\n"},
			{"echo shared >/dev/shm/file; ls /tmp", "of-the-first\n"},
			{"ps | grep -c 'sleep 100[0-9]$'", "2\n"},
			{"cat /sys/fs/cgroup/memory.max", "max\n"},
			{"cat /sys/fs/cgroup/pids.current", "2\n"},
		}, nil)
	})
	t.Run("near", func(t *testing.T) {
		look(t, near, []probe{
			{"hostname; cat /dev/shm/file", "near\nshared\n"},
			{"ps | grep -c 'sleep 100[0-9]$'", "2\n"},
			{"ls /tmp | wc -l; touch /tmp/of-near", "0\n"},
			{"cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max", "33554432\n50\n"},
			{"cat /proc/self/cgroup", "0::/\n"},
			{"nc 127.0.0.1 80 </dev/null", "answer\n"},
			{"ls /run/boxlite 2>&1", "No such file"},
		}, nil)
	})
	t.Run("far", func(t *testing.T) {
		look(t, far, []probe{
			{"hostname; ls /dev/shm | wc -l; ls /tmp | wc -l", "box\n0\n0\n"},
			{"ps | grep -c 'sleep 100[0-9]$'", "1\n"},
			{"cat /sys/fs/cgroup/memory.max", "max\n"},
			{"mount -t tmpfs x /tmp", "ermission denied"},
		}, nil)
	})

	for member, want := range map[*vm]string{near: "ipc pid uts net ", far: "net "} {
		var same strings.Builder
		for _, kind := range []string{"ipc", "pid", "uts", "mnt", "cgroup", "net"} {
			look := shell("readlink /proc/self/ns/" + kind)
			if v.exec("of-"+kind, look, "").stdout == member.exec("of-"+kind, look, "").stdout {
				same.WriteString(kind + " ")
			}
		}
		if same.String() != want {
			t.Errorf("%s has in common with the first: %q, want %q", member.container, same.String(), want)
		}
	}
	testFreeze(t, v, near)
	testMemberOOM(t, v, near, far)

	// A member that ends takes only itself, also of the pid namespace that it was in.
	near.ok(guestproto.OpSignal, guestproto.SignalRequest{Signal: int(unix.SIGKILL)}, nil)
	var end guestproto.WaitReply
	near.ok(guestproto.OpWait, guestproto.WaitRequest{}, &end)
	if end.Signal != int(unix.SIGKILL) || !end.OOMKilled {
		t.Errorf("near ended with %+v, want signal 9, after a kill for lack of memory", end)
	}
	v.removeMember("near")
	wantError(t, near.call(guestproto.OpStats, nil, nil), guestproto.CodeNoProcess, "the VM has no container near")
	v.in("near").ok(guestproto.OpRemove, nil, nil) // once more is no error
	if r := v.exec("after", shell("ps | grep -c 'sleep 100[0-9]$'"), ""); r.stdout != "1\n" {
		t.Errorf("beside the first container's run %q others of its pid namespace", r.stdout)
	}
	// One may come again under the same name, and one that runs may be removed.
	makeRootfs(t, filepath.Join(v.dir, "share", guestproto.MemberName("near"), "rootfs"))
	near.startMember(v.memberSpec("near", shell("sleep 1003")), map[specs.LinuxNamespaceType]string{specs.PIDNamespace: "far"})
	const count = `n=$(ps | grep -c 'sleep 100[0-9]$')`
	// Its program may not have begun when the start is acknowledged.
	if r := far.exec("sees", shell(count+"; i=0; while [ $n = 1 ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); "+count+"; done; echo $n"), ""); r.stdout != "2\n" {
		t.Errorf("far sees %q processes that sleep, want its own and that of who has joined", r.stdout)
	}
	v.removeMember("far")
	if err := near.call(guestproto.OpWait, guestproto.WaitRequest{}, &end); err != nil || end.Signal != int(unix.SIGKILL) {
		t.Errorf("a member of a pid namespace whose init has ended: %+v, %v", end, err)
	}
	v.removeMember("near")
	testMemberFails(t, v)
	if err := v.call(guestproto.OpRemove, nil, nil); err == nil {
		t.Error("the first container can be removed")
	}
	if r := v.exec("last", shell("echo alive"), ""); r.stdout != "alive\n" {
		t.Errorf("the first container has %+v", r)
	}
}

// removeMember is what the host does: the files go from the share, then the guest lets go of them.
func (v *vm) removeMember(name string) {
	v.t.Helper()
	dir := filepath.Join(v.dir, "share", guestproto.MemberName(name))
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err != nil {
		v.t.Fatal(err)
	}
	v.in(name).ok(guestproto.OpRemove, nil, nil)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		v.t.Errorf("the directory of the member that has gone: %v", err)
	}
}

func testFreeze(t *testing.T, v, member *vm) {
	count := `n() { cat /tmp/count | wc -l; }; a=$(n); usleep 300000; [ $(n) = $a ] && echo still || echo moving`
	member.ok(guestproto.OpExec, guestproto.ExecRequest{ID: "counts", Process: shell("while :; do echo >>/tmp/count; usleep 10000; done")}, nil)
	v.await(countFile(v, "near"))
	member.ok(guestproto.OpFreeze, guestproto.FreezeRequest{Frozen: true}, nil)
	if r := v.exec("besides", shell("echo moving"), ""); r.stdout != "moving\n" {
		t.Errorf("beside a frozen container: %+v", r)
	}
	before := countLines(t, v, "near")
	time.Sleep(300 * time.Millisecond)
	if after := countLines(t, v, "near"); after != before {
		t.Errorf("a frozen container has gone on from %d to %d", before, after)
	}
	var stats guestproto.StatsReply
	if member.ok(guestproto.OpStats, nil, &stats); stats.Pids.Current < 2 {
		t.Errorf("stats of a frozen container: %+v", stats)
	}
	member.ok(guestproto.OpFreeze, guestproto.FreezeRequest{}, nil)
	if r := member.exec("thawed", shell(count), ""); r.stdout != "moving\n" {
		t.Errorf("a container that was frozen is %s", r.stdout)
	}
}

// countFile is where a member counts, on the host.
func countFile(v *vm, member string) string {
	return filepath.Join(v.dir, "share", guestproto.MemberName(member), "rootfs/tmp/count")
}

func countLines(t *testing.T, v *vm, member string) int {
	t.Helper()
	text, err := os.ReadFile(countFile(v, member))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

// Lack of memory is the business of one container.
func testMemberOOM(t *testing.T, v, limited, other *vm) {
	r := limited.exec("eats", shell("tail /dev/zero"), "")
	if r.Signal != int(unix.SIGKILL) {
		t.Errorf("a process beyond the limit: %+v", r.WaitReply)
	}
	var rep guestproto.OOMReply
	if limited.ok(guestproto.OpOOM, guestproto.OOMRequest{}, &rep); rep.Kills == 0 {
		t.Error("no kill for lack of memory")
	}
	for _, alive := range []*vm{v, other} {
		if r := alive.exec("alive", shell("grep oom_kill /sys/fs/cgroup/memory.events"), ""); r.stdout != "oom_kill 0\noom_group_kill 0\n" && r.stdout != "oom_kill 0\n" {
			t.Errorf("another container: %q", r.stdout)
		}
	}
}

// A member that cannot be made leaves nothing.
func testMemberFails(t *testing.T, v *vm) {
	bad := v.in("bad")
	spec := v.memberSpec("bad", shell("true"))
	spec.Process.Args = []string{"nonesuch"}
	for range 2 { // the name is free again
		wantError(t, bad.call(guestproto.OpCreate, guestproto.CreateRequest{ID: "bad", Spec: spec}, nil), guestproto.CodeCommand, "nonesuch")
	}
	wantError(t, bad.call(guestproto.OpCreate, guestproto.CreateRequest{ID: "bad", Spec: spec, Joins: map[specs.LinuxNamespaceType]string{specs.IPCNamespace: "nonesuch"}}, nil),
		guestproto.CodeBadRequest, "ipc namespace")
	wantError(t, bad.call(guestproto.OpCreate, guestproto.CreateRequest{ID: "bad", Spec: spec, Joins: map[specs.LinuxNamespaceType]string{specs.UserNamespace: ""}}, nil),
		guestproto.CodeBadRequest, "user namespace")
	wantError(t, v.in("a/b").call(guestproto.OpCreate, guestproto.CreateRequest{ID: "bad", Spec: spec}, nil), guestproto.CodeBadRequest, "a/b")
	v.removeMember("bad")
}
