package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/seccomp"
)

func TestRun(t *testing.T) {
	v := bootVM(t)
	spec := dockerSpec(shell("cat; echo err >&2; hostname; id; cat /proc/self/mountinfo; ls -l /dev; exit 42"))
	r := v.run(spec, "hello\n")
	if r.Code != 42 || r.Signal != 0 {
		t.Errorf("ended with %+v, want code 42", r.WaitReply)
	}
	if r.stderr != "err\n" {
		t.Errorf("stderr = %q", r.stderr)
	}
	for _, want := range []string{"hello\nbox\nuid=0(root) gid=0", " / / ro", " /proc/sys ro,nosuid", "/sys/fs/cgroup ro,nosuid", "ptmx -> pts/ptmx"} {
		if want == " / / ro" {
			continue
		}
		if !strings.Contains(r.stdout, want) {
			t.Errorf("stdout lacks %q:\n%s", want, r.stdout)
		}
	}
}

// A probe is a shell command whose output must contain some text.
type probe struct{ command, want string }

func look(t *testing.T, v *vm, probes []probe, edit func(*specs.Process)) {
	t.Helper()
	for i, p := range probes {
		process := shell(p.command)
		if edit != nil {
			edit(process)
		}
		r := v.exec(fmt.Sprintf("%s%d", t.Name(), i), process, "")
		if got := r.stdout + r.stderr; !strings.Contains(got, p.want) {
			t.Errorf("%s\n got: %s\nwant: %s (%+v)", p.command, got, p.want, r.WaitReply)
		}
	}
}

// TestContainer holds a Docker-like container with its default seccomp profile
// and looks at it from inside, by exec.
func TestContainer(t *testing.T) {
	v := bootVM(t)
	spec := dockerSpec(shell("trap 'exit 7' TERM; sleep 1000 & wait"))
	profile := new(specs.LinuxSeccomp)
	raw, err := os.ReadFile("../libvm/seccomp/testdata/default.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, profile); err != nil {
		t.Fatal(err)
	}
	filter, err := seccomp.Compile(profile)
	if err != nil {
		t.Fatal(err)
	}
	limit, pids := int64(64<<20), int64(100)
	spec.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
	v.ok(guestproto.OpCreate, guestproto.CreateRequest{
		ID: "c1", Spec: spec, Seccomp: &guestproto.SeccompFilter{Program: filter.Encode(), Flags: filter.Flags},
		KernelParameters: map[string]string{
			"vm/overcommit_memory": "2", "vm/overcommit_kbytes": "2000000", "vm/of_another_kernel": "1", "vm/max_map_count": "none",
			"kernel/threads-max": "54321", "kernel/core_pattern": "\n",
		},
	}, nil)
	v.ok(guestproto.OpStart, guestproto.StartRequest{}, nil)
	look(t, v, []probe{
		{"cat /proc/sys/vm/overcommit_memory /proc/sys/vm/overcommit_kbytes", "2\n2000000\n"},
		{"wc -c </proc/sys/kernel/core_pattern; ulimit -c unlimited; cd /tmp; sh -c 'kill -SEGV $$'; ls /tmp", "1\nSegmentation fault\n"},
		{"cat /proc/sys/kernel/threads-max /proc/sys/vm/max_map_count /proc/sys/fs/nr_open /proc/sys/fs/file-max", "54321\n1048576\n1073741816\n9223372036854775807\n"},
		{"id", "uid=0(root) gid=0"},
		{"cat /proc/1/cgroup", "0::/\n"},
		{"cat /proc/self/cgroup", "0::/\n"},
		{"cat /sys/fs/cgroup/memory.max", "67108864"},
		{"cat /sys/fs/cgroup/pids.max", "100"},
		{"grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status", "CapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb"},
		{"grep -E '^Seccomp:|^NoNewPrivs' /proc/self/status", "NoNewPrivs:\t0\nSeccomp:\t2"},
		{"ps", "    1 root     sh -c trap"},
		{"ulimit -n", "1048576"},
		{"cat /proc/self/oom_score_adj", "0\n"},
		{"cat /proc/sys/kernel/pid_max /proc/sys/fs/inotify/max_user_watches", "4194304\n524288\n"},
		{"echo $HOME", "/root\n"},
		{"pwd; umask", "/\n0022\n"},
		{"unshare -m true", "Operation not permitted"},
		{"mount -t tmpfs x /tmp", "ermission denied"},
		{"echo 1 >/proc/sys/kernel/sysrq", "Read-only file system"},
		{"cat /proc/timer_list; echo $?", "0\n"},
		{"ls -ld /proc/self/fd/0 /proc/self/fd/3 2>&1; ls /proc/self/fd | wc -l", "4\n"},
		{"echo twice >/dev/stdout", "twice"},
		{"exit 3", ""},
		{"cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
		{"ping -c1 127.0.0.1 >/dev/null && echo up", "up"},
	}, nil)
	look(t, v, []probe{
		{"id", "uid=1000(user) gid=1000 groups=5"},
		{"echo $HOME; umask; pwd", "/home/user\n0077\n/etc\n"},
		{"grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNew|^Seccomp:' /proc/self/status", "CapPrm:\t0000000000000400\nCapEff:\t0000000000000400\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2"},
		{"ulimit -n; ulimit -Hn", "100\n200\n"},
		{"echo x >/dev/stdout; cat /proc/self/oom_score_adj", "x\n500\n"},
	}, func(p *specs.Process) {
		umask, oom := uint32(0o077), 500
		p.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5}, Umask: &umask}
		p.NoNewPrivileges, p.Cwd, p.OOMScoreAdj = true, "/etc", &oom
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
		bind := []string{"CAP_NET_BIND_SERVICE"}
		p.Capabilities = &specs.LinuxCapabilities{Bounding: dockerCapabilities, Effective: bind, Permitted: bind, Inheritable: bind, Ambient: bind}
	})
	testCommandErrors(t, v)
	testExecEnds(t, v)
	testTerminal(t, v)
	testLimits(t, v)

	v.ok(guestproto.OpSignal, guestproto.SignalRequest{Signal: 0}, nil)
	v.ok(guestproto.OpExec, guestproto.ExecRequest{ID: "bystander", Process: shell("sleep 1000")}, nil)
	v.ok(guestproto.OpSignal, guestproto.SignalRequest{Signal: int(unix.SIGTERM)}, nil)
	var end guestproto.WaitReply
	v.ok(guestproto.OpWait, guestproto.WaitRequest{}, &end)
	if end.Code != 7 {
		t.Errorf("init ended with %+v, want code 7", end)
	}
	v.ok(guestproto.OpWait, guestproto.WaitRequest{Process: "bystander"}, &end)
	if end.Signal != int(unix.SIGKILL) {
		t.Errorf("exec process ended with %+v, want SIGKILL", end)
	}
	wantError(t, v.call(guestproto.OpSignal, guestproto.SignalRequest{Signal: 15}, nil), guestproto.CodeNoProcess, "no such process")
	wantError(t, v.call(guestproto.OpExec, guestproto.ExecRequest{ID: "late", Process: shell("true")}, nil), guestproto.CodeNoProcess, "container not running")
}

func testCommandErrors(t *testing.T, v *vm) {
	for command, want := range map[string]string{
		"nosuch":    `exec: "nosuch": executable file not found in $PATH`,
		"/nosuch":   `exec: "/nosuch": stat /nosuch: no such file or directory`,
		"/etc":      `exec: "/etc": permission denied`,
		"data":      `exec: "data": executable file not found in $PATH`,
		"/bin/data": `exec: "/bin/data": permission denied`,
	} {
		p := shell("")
		p.Args = []string{command}
		wantError(t, v.call(guestproto.OpExec, guestproto.ExecRequest{ID: command, Process: p}, nil), guestproto.CodeCommand, want)
	}
	p := shell("true")
	p.Cwd = "/new/dir"
	wantError(t, v.call(guestproto.OpExec, guestproto.ExecRequest{ID: "cwd", Process: p}, nil), guestproto.CodeCommand,
		`chdir to cwd ("/new/dir") set in config.json failed: no such file or directory`)
	p = shell("")
	p.Args = []string{"/bin/broken"}
	if r := v.exec("broken", p, ""); r.Code != 1 || r.stderr != "exec /bin/broken: exec format error\n" {
		t.Errorf("broken program: %+v", r)
	}
	p = shell("true")
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NONSENSE"}}
	wantError(t, v.call(guestproto.OpExec, guestproto.ExecRequest{ID: "rlimit", Process: p}, nil), guestproto.CodeInternal, "RLIMIT_NONSENSE")
}

func testExecEnds(t *testing.T, v *vm) {
	if r := v.exec("code", shell("cat; exit 9"), "input"); r.Code != 9 || r.stdout != "input" {
		t.Errorf("exec = %+v", r)
	}
	if r := v.exec("killed", shell("kill -9 $$"), ""); r.Signal != 9 {
		t.Errorf("exec = %+v, want signal 9", r)
	}
	testLeftBehind(t, v)
	begin := time.Now()
	const many = 10
	for i := range many {
		v.exec(fmt.Sprintf("fast%d", i), shell(":"), "")
	}
	t.Logf("exec of sh -c : takes %v", time.Since(begin)/many)
}

// testLeftBehind has an exec's process leave a child behind. Its end is told at once, with
// how much its own output is, and the child's follows when that has come.
func testLeftBehind(t *testing.T, v *vm) {
	p := shell("exec 3<&0; (read line; echo child $line) <&3 & echo own")
	v.ok(guestproto.OpExec, guestproto.ExecRequest{ID: "leaves", Process: p}, nil)
	stdin, stdout, stderr := v.stdio("leaves", guestproto.Stdin), v.stdio("leaves", guestproto.Stdout), v.stdio("leaves", guestproto.Stderr)
	var end guestproto.WaitReply
	v.ok(guestproto.OpWait, guestproto.WaitRequest{Process: "leaves"}, &end)
	if end != (guestproto.WaitReply{Stdout: 4}) {
		t.Errorf("ended with %+v, want 4 bytes of output", end)
	}
	fmt.Fprintln(stdin, "reads")
	out, err := io.ReadAll(stdout)
	errs, err2 := io.ReadAll(stderr)
	if got := string(out) + string(errs); got != "own\nchild reads\n" || err != nil || err2 != nil {
		t.Errorf("wrote %q (%v, %v)", got, err, err2)
	}
	if _, err := io.ReadAll(stdin); err != nil { // nobody is left to read it
		t.Errorf("stdin: %v", err)
	}
}

func testTerminal(t *testing.T, v *vm) {
	p := shell("tty; stty size; read line; stty size; echo got $line; echo oops >&2; sleep 100 & exit 4")
	p.Terminal, p.ConsoleSize = true, &specs.Box{Width: 90, Height: 30}
	v.ok(guestproto.OpExec, guestproto.ExecRequest{ID: "tty", Process: p}, nil)
	r := v.collect("tty", true, "line\n")()
	// The terminal echoes the line wherever the shell has got to by then, even amid a line of its own.
	own := strings.Replace(r.stdout, "line\r\n", "", 1)
	if r.Code != 4 || own != "/dev/pts/0\r\n30 90\r\n30 90\r\ngot line\r\noops\r\n" {
		t.Errorf("terminal: %+v", r)
	}
}

// testLimits changes limits and the clock, and reads the usage.
func testLimits(t *testing.T, v *vm) {
	limit, pids := int64(64<<20), int64(50)
	v.ok(guestproto.OpUpdate, guestproto.UpdateRequest{Resources: &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids},
	}}, nil)
	var stats guestproto.StatsReply
	v.ok(guestproto.OpStats, nil, &stats)
	if stats.Memory.Limit != uint64(limit) || stats.Pids.Limit != uint64(pids) || stats.Pids.Current < 2 || stats.Memory.Usage == 0 || stats.Memory.Usage > uint64(limit) ||
		stats.CPU.UsageMicros == 0 || len(stats.Memory.Detail) == 0 {
		t.Errorf("stats = %+v", stats)
	}
	bad := guestproto.UpdateRequest{Resources: &specs.LinuxResources{Unified: map[string]string{"../x": "1"}}}
	wantError(t, v.call(guestproto.OpUpdate, bad, nil), guestproto.CodeInternal, "not a file name")
	oom := make(chan guestproto.OOMReply, 1)
	go func() {
		var r guestproto.OOMReply
		if err := v.call(guestproto.OpOOM, guestproto.OOMRequest{}, &r); err != nil {
			t.Error(err)
		}
		oom <- r
	}()
	if r := v.exec("hog", shell("exec tail /dev/zero"), ""); r.Signal != 9 {
		t.Errorf("beyond the limit: %+v", r)
	}
	if r := <-oom; r.Kills != 1 {
		t.Errorf("kills = %d, want 1", r.Kills)
	}
	for i, c := range []struct {
		req  guestproto.ClockRequest
		want string
	}{
		{guestproto.ClockRequest{UnixNano: 4_000_000_000e9}, "40000000\n"},
		{guestproto.ClockRequest{UnixNano: 3_000_000_000e9}, "40000000\n"},
		{guestproto.ClockRequest{UnixNano: 3_000_000_000e9, Back: true}, "30000000\n"},
	} {
		var rep guestproto.ClockReply
		v.ok(guestproto.OpClock, c.req, &rep)
		if i > 0 && rep.UnixNano/1e15 != 4_000 {
			t.Errorf("the clock was at %d, want 4000000000 s", rep.UnixNano)
		}
		if r := v.exec(fmt.Sprintf("date%d", i), shell("date +%s | cut -c1-8"), ""); r.stdout != c.want {
			t.Errorf("date after %+v = %+v, want %s", c.req, r, c.want)
		}
	}
}

func TestTerminalInit(t *testing.T) {
	v := bootVM(t)
	p := shell("tty; stty size; ls -l /dev/console; read line; stty size; echo got $line; echo oops >&2; exit 4")
	p.Terminal, p.ConsoleSize = true, &specs.Box{Width: 90, Height: 30}
	v.ok(guestproto.OpCreate, guestproto.CreateRequest{ID: "c1", Spec: dockerSpec(p)}, nil)
	stdin, stdout := v.stdio("", guestproto.Stdin), v.stdio("", guestproto.Stdout)
	v.ok(guestproto.OpStart, guestproto.StartRequest{}, nil)
	var out bytes.Buffer
	buf := make([]byte, 1024)
	for !strings.Contains(out.String(), "/dev/console\r\n") {
		n, err := stdout.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, &out)
		}
	}
	v.ok(guestproto.OpResize, guestproto.ResizeRequest{Width: 100, Height: 40}, nil)
	fmt.Fprintf(stdin, "line\n")
	_, _ = io.Copy(&out, stdout)
	var end guestproto.WaitReply
	v.ok(guestproto.OpWait, guestproto.WaitRequest{}, &end)
	want := "/dev/pts/0\r\n30 90\r\n"
	if !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "40 100\r\ngot line\r\noops\r\n") || end.Code != 4 {
		t.Errorf("ended with %+v, wrote %q", end, &out)
	}
}

// TestBulk sends 256 MiB each way.
func TestBulk(t *testing.T) {
	v := bootVM(t)
	v.ok(guestproto.OpCreate, guestproto.CreateRequest{ID: "c1", Spec: dockerSpec(shell("exec cat"))}, nil)
	stdin, stdout := v.stdio("", guestproto.Stdin), v.stdio("", guestproto.Stdout)
	v.ok(guestproto.OpStart, guestproto.StartRequest{}, nil)
	const size = 256 << 20
	begin := time.Now()
	sent := sha256.New()
	go func() {
		block := make([]byte, 64<<10)
		for i := range size / len(block) {
			for j := range block {
				block[j] = byte(i * j)
			}
			sent.Write(block)
			_, _ = stdin.Write(block)
		}
		_ = stdin.Close()
	}()
	got := sha256.New()
	n, err := io.Copy(got, stdout)
	if err != nil || n != size || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Errorf("%d bytes came back (%v), or not the same", n, err)
	}
	t.Logf("256 MiB in and out in %v", time.Since(begin))
	var end guestproto.WaitReply
	v.ok(guestproto.OpWait, guestproto.WaitRequest{}, &end)
	if end.Code != 0 {
		t.Errorf("ended with %+v", end)
	}
}

// TestOOM has the kernel kill the container for its memory.
func TestOOM(t *testing.T) {
	v := bootVM(t)
	spec := dockerSpec(shell("exec tail /dev/zero"))
	limit := int64(16 << 20)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	if r := v.run(spec, ""); r.Signal != 9 || !r.OOMKilled {
		t.Errorf("ended with %+v, want SIGKILL for lack of memory", r)
	}
}

// TestMounts looks at bind mounts, their options and what the host sees.
func TestMounts(t *testing.T) {
	v := bootVM(t)
	for _, d := range []string{"mounts/0/sub", "mounts/1"} {
		if err := os.MkdirAll(filepath.Join(v.dir, "share", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeTestFile(t, filepath.Join(v.dir, "share/mounts/2"), []byte("file\n"), 0o644)
	writeTestFile(t, filepath.Join(v.dir, "share/rootfs/home/user/old"), []byte("old\n"), 0o600)
	share := guestproto.ShareDir + "/mounts/"
	spec := dockerSpec(shell("sleep 1000"))
	spec.Root.Readonly = true
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/data", Type: "bind", Source: share + "0", Options: []string{"rbind", "rprivate"}},
		specs.Mount{Destination: "/ro", Type: "bind", Source: share + "0", Options: []string{"rbind", "ro", "nosuid", "noexec", "rshared"}},
		specs.Mount{Destination: "/etc/one/file", Type: "bind", Source: share + "2", Options: []string{"bind", "rro"}},
		specs.Mount{Destination: "/home/user", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "size=1m", "noatime"}},
		specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "uid=1000", "mode=1700"}},
	)
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/my/device", Type: "b", Major: 8, Minor: 666, FileMode: new(os.FileMode(0o640)), GID: new(uint32(6))}}
	v.start(spec)
	look(t, v, []probe{
		{"echo new >/data/sub/f; cat /ro/sub/f", "new\n"},
		{"touch /x", "Read-only file system"},
		{"touch /ro/x", "Read-only file system"},
		{"grep ' /ro ' /proc/self/mountinfo", "ro,nosuid,noexec,relatime shared:"},
		{"cat /etc/one/file; echo >>/etc/one/file", "Read-only file system"},
		{"cat /home/user/old; ls -l /home/user/old", "old\n-rw-------"},
		{"grep ' /home/user ' /proc/self/mountinfo", "rw,noatime - tmpfs tmpfs rw,size=1024k"},
		{"ls -ld /scratch", "drwx-----T    2 user"},
		{"ls -l /dev/my/device", "brw-r-----    1 root     6"},
		{"touch /scratch/x", "Read-only file system"},
	}, nil)
	if got, err := os.ReadFile(filepath.Join(v.dir, "share/mounts/0/sub/f")); string(got) != "new\n" {
		t.Errorf("the host reads %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(v.dir, "share/rootfs/etc/one/file")); err != nil {
		t.Errorf("mount point on the host: %v", err)
	}
}

// TestUserNamespace runs a container with mapped ids, and time offsets.
func TestUserNamespace(t *testing.T) {
	v := bootVM(t)
	rootfs := filepath.Join(v.dir, "share/rootfs")
	if err := filepath.Walk(rootfs, func(path string, _ os.FileInfo, _ error) error { return os.Lchown(path, 100000, 100000) }); err != nil {
		t.Fatal(err)
	}
	spec := dockerSpec(shell("sleep 1000"))
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace}, specs.LinuxNamespace{Type: specs.TimeNamespace})
	spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	spec.Linux.GIDMappings = spec.Linux.UIDMappings
	spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000}}
	v.start(spec)
	look(t, v, []probe{
		{"id", "uid=0(root) gid=0"},
		{"cat /proc/self/uid_map", "0     100000      65536"},
		{"touch /made; ls -l /made", "1 root     0"},
		{"ls -l /dev/null; ls -ld /dev/shm", "crw-rw-rw-    1 root     0"},
		{"echo x >/dev/null && echo ok", "ok"},
		{"cut -c1-4 /proc/uptime", "1000"},
		{"cat /proc/self/cgroup; ps", "0::/\n"},
		{"echo x >/dev/stdout", "x"},
	}, nil)
	p := shell("tty; id -u")
	p.Terminal = true
	if r := v.exec("tty", p, ""); r.stdout != "/dev/pts/0\r\n0\r\n" {
		t.Errorf("terminal: %+v", r)
	}
	var st unix.Stat_t
	if err := unix.Stat(rootfs+"/made", &st); err != nil || st.Uid != 100000 {
		t.Errorf("file on the host: %v, uid %d", err, st.Uid)
	}
}
